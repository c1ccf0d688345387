#!/bin/sh
# beta-VAEs at several strengths: one line each with beta, ELBO, KL and active units, sorted by the ELBO.
# Usage: sweep.sh "1 2 4 8" [options of vae train ...]
set -eu
betas=${1:-"1 4 16"}
[ $# -gt 0 ] && shift
pick="import json, sys; t = json.load(sys.stdin)['totals']; print(t['elbo'], t['kl'], t['active_units'], sep='\t')"
table=$(mktemp)
trap 'rm -f "$table"' EXIT
for beta in $betas; do
    run=$(vae train --quiet --model beta-vae --beta "$beta" "$@")
    totals=$(vae analyze --quiet "$run" --json)
    printf '%s\t%s\n' "$beta" "$(printf '%s' "$totals" | python3 -c "$pick")" >> "$table"
done
sort -t "$(printf '\t')" -k2,2gr "$table"
