#!/usr/bin/env bash
# Trains the SuperNet on the output of make_data.sh: by default, the default experiment. All flags: ./train.sh --help
#   ./train.sh --model_name=short --epochs=1
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/support/environment.sh"
use_python "$project/requirements.txt"
exec "$PYTHON" "$project/train.py" "$@"
