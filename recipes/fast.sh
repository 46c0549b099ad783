#!/usr/bin/env bash
# The default network and data, searched in one epoch: docs/results.md has what was tried. Flags given here come last and win.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
exec bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../train.sh" \
  --model_name=fast --epochs=1 --max_lr=2e-3 --warmup_steps=300 --clipnorm=1 --dropout_rate=0 --mixed_precision --proj_factor=1 --tie_embeddings \
  --gumbel_per_row --arch_lr_factor=2 --tau_start=3 --tau_end=0.1 \
  "$@"
