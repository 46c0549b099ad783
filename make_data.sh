#!/usr/bin/env bash
# Makes data/tfrecords: the windows of WikiText-2, with its tokenizer. All flags: ./make_data.sh --help
#   ./make_data.sh --input_text=my_book.txt --vocab_size=4000
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/support/environment.sh"
use_python "$project/requirements.txt"
exec "$PYTHON" "$project/data_utils.py" "$@"
