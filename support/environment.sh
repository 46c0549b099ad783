# Sourced by the shell scripts: `use_python FILE...` sets PYTHON to an interpreter that has the packages of the requirement files.
# That is the current python3 where it already has them (Colab, conda), otherwise .venv, which is made and filled once.

set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "error: $*" >&2
  exit 1
}

has_packages() { # interpreter, requirement files
  "$1" - "${@:2}" 2>/dev/null <<'EOF'
import sys
from importlib.metadata import version
from packaging.requirements import Requirement

for line in (line for path in sys.argv[1:] for line in open(path) if line.strip() and not line.startswith("#")):
    requirement = Requirement(line.strip())
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)
EOF
}

supported_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  fail "Python 3.10 to 3.13 is needed, and python3 is $(python3 --version 2>&1 || true): install one of these"
}

use_python() { # requirement files
  PYTHON=python3
  if has_packages "$PYTHON" "$@"; then return; fi
  PYTHON=$project/.venv/bin/python
  if has_packages "$PYTHON" "$@"; then return; fi

  local base log=$project/.venv/install.log packages=()
  base=$(supported_python)
  "$base" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$base has no venv module: install it (Debian and Ubuntu: apt install python3-venv)"
  for file in "$@"; do packages+=(-r "$file"); done
  if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then packages+=('tensorflow[and-cuda]'); fi
  echo "installing TensorFlow and the other packages into .venv, once: some minutes, some GB"
  "$base" -m venv "$project/.venv" || fail "cannot make $project/.venv: is the folder writable, is there space?"
  "$PYTHON" -m pip install "${packages[@]}" >"$log" 2>&1 ||
    fail "the installation failed ($(grep -i error "$log" | tail -n 1)); all of it is in $log; run this again when it is mended"
}
