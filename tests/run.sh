#!/usr/bin/env bash
# Installs what the tests need, lints, and runs the tests, three at a time: tests/run.sh [pytest arguments]
# The first minute shows whether the installation works. COLD=1 starts every Python anew (see warm.py), which is slower. WIKITEXT2
# names a folder with WikiText-2 for the tests that need it. Tests see nothing else of your environment, and neither data/ nor logs/.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
use_python "$project/requirements.txt" "$project/tests/requirements.txt"
cd "$project"
"$PYTHON" -m ruff check --no-cache
exec "$PYTHON" -m pytest --numprocesses=3 --dist=load --maxschedchunk=1 "$@"
