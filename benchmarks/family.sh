#!/bin/sh
# Seven objectives on dSprites, trained equally long with equal networks, and side by side: docs/results.md has the table.
#
#   benchmarks/family.sh DIR [STEPS [JOBS]]      runs go to DIR, are found again and gone on with; JOBS at a time
#
# The network of Burgess et al. 2018, 10 latents, Bernoulli likelihood, Adam 5e-4, batches of 64, seed 0, 1 % of the images
# held out. Each objective has the weight of its paper (gamma = 35, C = 25 nats) or, for DIP-VAE, the middle of the grid of
# Locatello et al. 2019; C of the annealed VAE rises over two thirds of the steps.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
DIR=$1 STEPS=${2:-30000} JOBS=${3:-1}
mkdir -p "$DIR"

train() { # NAME SETTING...
    name=$1
    shift
    OMP_NUM_THREADS=1 vae train --model "$name" --data dsprites --set data.holdout=0.01 --set model.net=burgess --latent-dim 10 \
        --steps "$STEPS" --batch-size 64 --lr 5e-4 --seed 0 --set train.eval_every=10000 --set train.save_every=2000 "$@" \
        --runs-dir "$DIR" --name "$name" --resume auto 2>"$DIR/$name.log" >"$DIR/$name.out" || echo "$name failed: $DIR/$name.log" >&2
}

one() {
    case $1 in
    vae) train vae ;;
    beta-vae) train beta-vae --beta 4 ;;
    annealed-vae) train annealed-vae --set model.gamma=1000 --set model.c_max=25 --set "model.c_steps=$((STEPS * 2 / 3))" ;;
    beta-tcvae) train beta-tcvae --beta 6 ;;
    factor-vae) train factor-vae --set model.gamma=35 --set 'model.critic_optim={name: adam, lr: 0.0001, betas: [0.5, 0.9]}' ;;
    dip-vae-i) train dip-vae-i --set model.lambda_od=10 ;;
    dip-vae-ii) train dip-vae-ii --set model.lambda_od=10 ;;
    esac
}

running=0
for name in vae beta-vae annealed-vae beta-tcvae dip-vae-i dip-vae-ii factor-vae; do
    one "$name" &
    running=$((running + 1))
    if [ "$running" -ge "$JOBS" ]; then
        wait
        running=0
    fi
done
wait
cd "$DIR"
for name in vae beta-vae annealed-vae beta-tcvae dip-vae-i dip-vae-ii factor-vae; do
    vae analyze "$name" --split val --json >"$name.json"
done
python "$here/family.py" vae beta-vae annealed-vae beta-tcvae dip-vae-i dip-vae-ii factor-vae >terms.md
python "$here/disentanglement.py" vae beta-vae annealed-vae beta-tcvae dip-vae-i dip-vae-ii factor-vae --limit 50000 -o metrics.md
