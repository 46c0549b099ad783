#!/usr/bin/env bash
# Sets up what the tests need and runs them, two at a time: tests/run.sh [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
use_python "$project/requirements.txt" "$project/tests/requirements.txt"
cd "$project"
exec "$PYTHON" -m pytest --numprocesses=2 --dist=worksteal "${@:-tests}"
