#!/bin/sh
# A traversal of the active latents alone, as a GIF: the table on stdout is tab-separated, so awk can choose.
# Usage: active_latents.sh RUN OUT.gif
set -eu
run=$1
out=$2
dims=$(vae analyze --quiet "$run" 2>/dev/null | awk -F '\t' '
    NR == 1 { for (i = 1; i <= NF; i++) if ($i == "status") status = i }
    $status == "active" { print "--dim", $1 }')
[ -n "$dims" ] || { echo "no latent of $run is active" >&2; exit 1; }
# shellcheck disable=SC2086  # the words of $dims are separate arguments
vae traverse "$run" $dims -o "$out"
