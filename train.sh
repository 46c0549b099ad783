#!/usr/bin/env bash
# The default experiment: a search on the output of make_data.sh. Later flags win: ./train.sh --epochs=1
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/support/environment.sh"
use_python "$project/requirements.txt"
exec "$PYTHON" "$project/train.py" \
  --data_dir=data/tfrecords \
  --model_name=supernet \
  --num_layers=6 --d_model=128 --num_heads=4 --d_ffn=1024 --mem_len=16 --dropout_rate=0.1 \
  --cutoffs=250,2500 --proj_factor=4 \
  --opt_name=adam --max_lr=1e-4 --warmup_steps=4000 --epochs=20 \
  --tau_start=1.0 --tau_end=0.1 \
  "$@"
