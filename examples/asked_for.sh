#!/bin/sh
# What a model that learned from a few labels does when it is asked: images of each label, the same image with another
# label, one image with the label of another, and what its prior varies around a label.
# Usage: asked_for.sh RUN FOLDER [LABEL]      LABEL: the factor, digit unless said
set -eu
run=$1
out=$2
label=${3:-digit}
mkdir -p "$out"
vae sample "$run" --label "$label=*" -n 100 -o "$out/labels.png"
vae intervene "$run" --set "y:$label=*" -n 8 -o "$out/interventions.png"
vae mix "$run" --row 1 --row 5 --row 7 --row 9 --column 0 --column 2 --column 4 --column 8 --take y -o "$out/mix.png"
vae traverse "$run" --label "$label=3" -o "$out/traversals.png"
