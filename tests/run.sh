#!/usr/bin/env bash
# Sets up what the tests need and runs them, three at a time: tests/run.sh [pytest arguments]
# The first minute tells whether the installation works.
# COLD=1 tests/run.sh starts every Python from nothing (warm.py), which takes longer. WIKITEXT2 names a folder with WikiText-2, for the
# tests that need it. Nothing else of your environment, and nothing in data/ and logs/, is seen by a test.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
use_python "$project/requirements.txt" "$project/tests/requirements.txt"
cd "$project"
"$PYTHON" -m ruff check --no-cache
exec "$PYTHON" -m pytest --numprocesses=3 --dist=load --maxschedchunk=1 "$@"
