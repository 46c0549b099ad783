#!/usr/bin/env bash
# The SuperNet at the size of the paper's experiments on WikiText-103, Transformer-XL base: 32 blocks to search where that has 16
# layers of attention and dense. On 8 GPUs a batch of 256 rows is 32 rows for each. Flags given here come last and win.
# Where several machines train, make the data on one of them first, by the line below.
# Vocabulary, cutoffs and schedule are ours: the paper's vocabulary is 267,735 words.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
use_python "$project/requirements.txt"
data=data/wikitext-103-tfrecords
[ -e "$data/metadata.json" ] || bash "$project/make_data.sh" --corpus=wikitext-103 --vocab_size=16000 --batch_size=256 --seq_len=192 --output_dir="$data"
exec "$PYTHON" "$project/train.py" \
  --data_dir="$data" \
  --model_name=wt103_base \
  --num_layers=32 --d_model=512 --num_heads=8 --d_ffn=2048 --mem_len=192 --dropout_rate=0.1 \
  --cutoffs=2000,6000 --proj_factor=1 --tie_embeddings \
  --opt_name=adam --clipnorm=0.25 --max_lr=2.5e-4 --warmup_steps=1000 --epochs=16 \
  --tau_start=1.0 --tau_end=0.1 \
  --mixed_precision \
  "$@"
