#!/usr/bin/env bash
# Does the network that a search finds keep the perplexity at a lower cost? Searches twice, the second time for a quick network,
# trains what was found, and alike: attention in every block, attention and dense in turn (Transformer-XL), and a random pick.
# Then prints them side by side. Flags given here go to every training, so they are about training or size: recipes/compare.sh --epochs=5
# The networks have six blocks. What a millisecond should cost, --latency_weight, depends on the machine: this one suits two cores.
source "$(dirname "${BASH_SOURCE[0]}")/../support/environment.sh"
use_python "$project/requirements.txt"

train() { # name, flags
  "$PYTHON" "$project/train.py" --model_name="compare_$1" --max_lr=1e-3 --warmup_steps=500 --epochs=2 "${@:2}"
}

train search "$@"
train found --architecture=logs/compare_search "$@"
train quick_search --latency_weight=0.006 "$@"
train quick --architecture=logs/compare_quick_search "$@"
train attention --architecture=aaaaaa "$@"
train interleaved --architecture=adadad "$@"
train random --architecture=random "$@"
exec "$PYTHON" "$project/evaluate.py" --split=test \
  --run=logs/compare_found,logs/compare_quick,logs/compare_attention,logs/compare_interleaved,logs/compare_random
