#!/usr/bin/env bash
# A search at the paper's size on WikiText-103: 32 blocks, as many as the 16 layers of Transformer-XL base, each of attention and dense.
# 256 rows are 32 rows for each of 8 GPUs. With several machines, first make the data on one of them with its make_data.sh command.
# Vocabulary, cutoffs and schedule are ours; the paper's vocabulary is 267,735 words.
# More flags go to train.py (./train.sh --help) and override those here.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
explain "$@"
use_python "$project/requirements.txt"
data=data/wikitext-103-tfrecords
[ -e "$data/metadata.json" ] || bash "$project/make_data.sh" --corpus=wikitext-103 --vocab_size=16000 --batch_size=256 --seq_len=192 --output_dir="$data"
exec "$PYTHON" "$project/train.py" \
  --data_dir="$data" \
  --model_name=wt103_base \
  --num_layers=32 --d_model=512 --num_heads=8 --d_ffn=2048 --mem_len=192 --dropout_rate=0.1 \
  --cutoffs=2000,6000 --proj_factor=1 --tie_embeddings \
  --clipnorm=0.25 --max_lr=2.5e-4 --warmup_steps=1000 --epochs=16 \
  --mixed_precision \
  "$@"
