#!/bin/sh
# Train, then make every picture and the table, from one run directory passed along.
# Usage: pipeline.sh [PRESET] [options of vae train ...]
set -eu
preset=${1:-beta-vae-dsprites}
[ $# -gt 0 ] && shift
run=$(vae train --preset "$preset" "$@")
vae sample "$run" -n 64 -o "$run/samples.png"
vae reconstruct "$run" -n 16 -o "$run/reconstructions.png"
vae traverse "$run" -o "$run/traversals.png"
vae analyze "$run" > "$run/latents.tsv"
echo "$run"
