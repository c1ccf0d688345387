#!/bin/sh
# beta-VAEs at several strengths: one line each with beta, ELBO, KL and active units, sorted by the ELBO.
# Usage: sweep.sh "1 2 4 8" [options of vae train ...]
set -eu
betas=${1:-"1 4 16"}
[ $# -gt 0 ] && shift
for beta in $betas; do
    run=$(vae train --quiet --model beta-vae --beta "$beta" "$@")
    vae analyze --quiet "$run" --json |
        python3 -c "import json, sys; t = json.load(sys.stdin)['totals']; print('$beta', t['elbo'], t['kl'], t['active'], sep='\t')"
done | sort -t "$(printf '\t')" -k2,2gr
