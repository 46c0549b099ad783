#!/usr/bin/env bash
# A search on characters: recipes/characters.sh enwik8, or text8. The tokens of text8 are its 27 characters. Those of enwik8 are its
# characters, bytes for the rarest, and [EOS] at line ends. Published tables call `bits_per_byte` bits per character.
# The network has 24 blocks: Transformer-XL has 12 layers, each of attention and dense, and the networks of the paper, with 1.11 (enwik8)
# and 1.18 (text8) bits per character, have 24 blocks too. 50 epochs are about the 400,000 steps of Transformer-XL. Learning rate,
# batch and clipnorm are those of Transformer-XL, but clipnorm bounds the gradient of each variable by itself.
# More flags go to train.py (./train.sh --help) and override those here.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
explain "$@"
case ${1-} in
  enwik8) tokens="--vocab_size=512 --add_eos" ;;
  text8) tokens= ;;
  *) fail "name the corpus first: recipes/characters.sh enwik8, or text8" ;;
esac
corpus=$1 data=data/$1-tfrecords
shift
use_python "$project/requirements.txt"
[ -e "$data/metadata.json" ] || bash "$project/make_data.sh" --corpus="$corpus" \
  --model_type=char --normalization_rule_name=identity $tokens --batch_size=22 --seq_len=512 --output_dir="$data"
exec "$PYTHON" "$project/train.py" \
  --data_dir="$data" \
  --model_name="$corpus" \
  --num_layers=24 --d_model=512 --num_heads=8 --d_ffn=2048 --mem_len=512 --dropout_rate=0.1 \
  --cutoffs= \
  --clipnorm=0.25 --max_lr=2.5e-4 --warmup_steps=0 --epochs=50 \
  --mixed_precision \
  "$@"
