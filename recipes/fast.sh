#!/usr/bin/env bash
# The default network and data, learned much faster: docs/results.md has what was tried. Flags given here come last and win.
exec "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../train.sh" \
  --model_name=fast --max_lr=2e-3 --warmup_steps=300 --epochs=1 --clipnorm=1 --dropout_rate=0 --mixed_precision \
  "$@"
