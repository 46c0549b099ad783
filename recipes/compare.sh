#!/usr/bin/env bash
# Does the network that a search finds keep the perplexity at a lower cost? Searches twice, the second time for a quick network,
# trains what was found and, with the same flags, attention in every block, attention and dense in turn (Transformer-XL), and a random pick.
# Then prints them side by side. Flags given here go to every training, so they are about training or size: recipes/compare.sh --epochs=5
# What a millisecond should cost, --latency_weight, depends on the machine: this one suits two cores.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
use_python "$project/requirements.txt"

logs=logs layers=6
for flag in "$@"; do
  case $flag in
    --logs_dir=*) logs=${flag#*=} ;;
    --num_layers=*) layers=${flag#*=} ;;
  esac
done

train() { # name, flags
  "$PYTHON" "$project/train.py" --model_name="compare_$1" --max_lr=1e-3 --warmup_steps=500 --epochs=2 "${@:2}"
}

blocks() { # letters, over and over
  local all=
  while [ "${#all}" -lt "$layers" ]; do all+=$1; done
  echo "${all:0:layers}"
}

train search "$@"
train found --architecture="$logs/compare_search" "$@"
train quick_search --latency_weight=0.006 "$@"
train quick --architecture="$logs/compare_quick_search" "$@"
train attention --architecture="$(blocks a)" "$@"
train interleaved --architecture="$(blocks ad)" "$@"
train random --architecture=random "$@"
runs=
for name in found quick attention interleaved random; do runs+=${runs:+,}$logs/compare_$name; done
exec "$PYTHON" "$project/evaluate.py" --split=test --run="$runs"
