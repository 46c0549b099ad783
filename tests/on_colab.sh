#!/usr/bin/env bash
# Runs the notebook where packages are as on Colab. LIKE is a program that runs a command in such an environment:
#   LIKE=./like_colab.sh tests/on_colab.sh
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
"$LIKE" 'python3 -m pytest -p no:cacheprovider -v tests/test_colab.py'
[ ! -e .venv ] # nothing had to be installed
