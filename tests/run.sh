#!/usr/bin/env bash
# Sets up what the tests need and runs them, three at a time: tests/run.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/../support/environment.sh"
use_python "$project/requirements.txt" "$project/tests/requirements.txt"
cd "$project"
exec "$PYTHON" -m pytest --numprocesses=3 --dist=worksteal "${@:-tests}"
