#!/bin/sh
# ELBO after equal steps in float32 and in bfloat16, three seeds each, as a table.
#   benchmarks/precision.sh [STEPS] [options of vae train]
set -eu
steps=${1:-2000}
[ $# -eq 0 ] || shift
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
for precision in fp32 bf16; do
  vae train --preset beta-vae-dsprites-conv --steps "$steps" --seeds 0-2 -S "train.precision=$precision" \
    --runs-dir "$runs" --name "$precision" -q "$@" > "$runs/$precision.txt"
done
# shellcheck disable=SC2046  (one argument a line)
vae compare $(cat "$runs/fp32.txt" "$runs/bf16.txt") --limit 20000 --split train
