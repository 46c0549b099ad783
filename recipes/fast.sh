#!/usr/bin/env bash
# A search of one epoch with tied embeddings; with --architecture or --init_from, the same training of a fixed network.
# docs/results/tried.md lists alternatives. More flags go to train.py (./train.sh --help) and override those here.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
explain "$@"
search="--gumbel_per_row --arch_lr_factor=2 --tau_start=3 --tau_end=0.1" architecture=
for flag in "$@"; do
  case $flag in
    --architecture=*) architecture=${flag#*=} ;;
    --init_from=*) architecture=${architecture:-fixed} ;;
    --search=uniform) search=--gumbel_per_row ;;
    --architecture | --init_from | --search) fail "$flag: write $flag=value here" ;;
  esac
done
[ "${architecture:-search}" = search ] || search=
exec bash "$project/train.sh" \
  --model_name=fast --epochs=1 --max_lr=2e-3 --warmup_steps=300 --clipnorm=1 --dropout_rate=0 --mixed_precision \
  --proj_factor=1 --tie_embeddings $search \
  "$@"
