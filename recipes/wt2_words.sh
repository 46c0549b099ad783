#!/usr/bin/env bash
# WikiText-2 by words, the task of the published tables: 33,278 different tokens with [EOS], none unknown, case kept. Its perplexity
# can be compared with theirs (docs/results.md). A search takes hours on two cores; --architecture=adadad trains the network of that page.
# More flags go to train.py (./train.sh --help) and override those here.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
explain "$@"
use_python "$project/requirements.txt"
data=data/wikitext-2-words
[ -e "$data/metadata.json" ] || bash "$project/make_data.sh" --corpus=wikitext-2 \
  --model_type=word --normalization_rule_name=identity --add_eos --seq_len=64 --batch_size=16 --output_dir="$data"
exec "$PYTHON" "$project/train.py" \
  --data_dir="$data" \
  --model_name=wt2_words \
  --num_layers=6 --d_model=160 --num_heads=4 --d_ffn=1024 --mem_len=64 \
  --dropout_rate=0.25 --embedding_dropout=0.4 --weight_decay=0.2 \
  --cutoffs=2000,10000 --proj_factor=1 --tie_embeddings \
  --clipnorm=1 --max_lr=2e-3 --warmup_steps=300 --epochs=16 \
  --mixed_precision \
  "$@"
