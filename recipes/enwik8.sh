#!/usr/bin/env bash
# The SuperNet on enwik8: 24 blocks. Transformer-XL's 12 layers there have attention and dense each, and the paper's network that
# reaches 1.11 bits per character has 24 blocks too. The tokens are characters, the rarest as bytes, and [EOS] where a line ends;
# `bits_per_byte` is what the tables call bits per character. 50 epochs are about Transformer-XL's 400,000 steps. Learning rate and
# batch are Transformer-XL's too; temperature and gradient clipping are ours.
# Flags given here come last and win.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
use_python "$project/requirements.txt"
data=data/enwik8-tfrecords
[ -e "$data/metadata.json" ] || bash "$project/make_data.sh" --corpus=enwik8 \
  --model_type=char --normalization_rule_name=identity --vocab_size=512 --add_eos --batch_size=22 --seq_len=512 --output_dir="$data"
exec "$PYTHON" "$project/train.py" \
  --data_dir="$data" \
  --model_name=enwik8 \
  --num_layers=24 --d_model=512 --num_heads=8 --d_ffn=2048 --mem_len=512 --dropout_rate=0.1 \
  --cutoffs= \
  --opt_name=adam --clipnorm=0.25 --max_lr=2.5e-4 --warmup_steps=0 --epochs=50 \
  --tau_start=1.0 --tau_end=0.1 \
  --mixed_precision \
  "$@"
