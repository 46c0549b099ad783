# Sourced by the shell scripts: `use_python FILE...` sets PYTHON to an interpreter that has the packages of the requirement files.
#
# That is python3 where it has them all (Colab), or else .venv. What is missing is installed once: into python3's own environment on
# Colab and where a virtual one that has TensorFlow is active, otherwise into .venv. Where python3 has a TensorFlow that fits (a
# container, conda, a module of a cluster), .venv builds upon it and holds only what is missing. What is installed stays as it is.

set -euo pipefail
unset CDPATH PYTHONSAFEPATH # cd would print the folder; Python would not find the modules beside a program

fail() {
  echo "error: $*" >&2
  exit 1
}

pwd -P >/dev/null 2>&1 || fail "the current folder has been removed: change to one that exists"
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

missing() { # interpreter, requirement files; fails where the interpreter does
  "$1" "$project/support/missing_packages.py" "${@:2}" 2>/dev/null
}

fits() { # interpreter, requirement files
  local lacks
  lacks=$(missing "$@") && [ -z "$lacks" ]
}

supported_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  local told # a version, or why python3 does not start
  told=$(python3 -c 'import platform; print(platform.python_version())' 2>&1 | grep -E '^[0-9]|not found|Error: ' | tail -n 1)
  fail "Python 3.10 to 3.13 is needed, and python3 says ${told:-nothing}: install one of these, or mend it"
}

is_own_environment() { # interpreter: people install into it, as on Colab or where a virtual environment is active
  [ -n "${COLAB_RELEASE_TAG:-}" ] || "$1" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'
}

use_python() { # requirement files
  local base log packages where venv=$project/.venv
  PYTHON=python3
  if fits "$PYTHON" "$@"; then return; fi
  PYTHON=$venv/bin/python
  if fits "$PYTHON" "$@"; then return; fi
  base=$(supported_python)
  if [ -e "$venv" ] || [ -L "$venv" ]; then
    "$PYTHON" -c '' 2>/dev/null || fail "$venv has no Python that starts: delete it, and run this again"
  fi

  if [ -e "$venv" ]; then
    where="into .venv"
  elif needs_tensorflow "$(missing "$base" "$@")"; then
    "$base" -c 'import venv, ensurepip' 2>/dev/null ||
      fail "$base has no venv module: install it (Debian and Ubuntu: apt install python3-venv)"
    make_venv "$base"
    where="into .venv"
  elif is_own_environment "$base"; then
    PYTHON=$base
    where="beside its TensorFlow"
  else
    make_venv "$base" --system-site-packages --without-pip
    where="into .venv, beside the TensorFlow of $base"
  fi
  packages=$(missing "$PYTHON" "$@")
  if needs_tensorflow "$packages" && nvidia-smi >/dev/null 2>&1; then packages+=$'\ntensorflow[and-cuda]'; fi
  if needs_tensorflow "$packages"; then
    echo "installing TensorFlow and the other packages $where, once: some minutes, some GB"
  else
    echo "installing $(paste -sd ' ' - <<<"$packages") $where, once"
  fi
  log=$(mktemp "${TMPDIR:-/tmp}/install.XXXXXX")
  install "$packages" >"$log" 2>&1 || fail_installation "$packages" "$log"
  fits "$PYTHON" "$@" ||
    fail "pip ended well, but $PYTHON still lacks $(missing "$PYTHON" "$@" | paste -sd ' ' -): does a setting of pip, such as" \
      "PIP_TARGET, PIP_PREFIX or PIP_DRY_RUN, send packages elsewhere? All that pip said is in $log"
  rm "$log"
}

fail_installation() { # requirements, a line each; what pip said
  local stays
  if stays=$(grep -o '(constraint) .*' "$2"); then
    fail "cannot install $(paste -sd ' ' - <<<"$1") and leave $(echo ${stays//(constraint) /}) as it is: run this in another environment," \
      "or change it with $PYTHON -m pip install $(sed "s/.*/'&'/" <<<"$1" | paste -sd ' ' -); all that pip said is in $2"
  fi
  fail "the installation failed ($(grep -i 'error\|no module named' "$2" | tail -n 1)); all of it is in $2; run this again when it is mended"
}

make_venv() { # interpreter, options
  "$1" -m venv "${@:2}" "$project/.venv" || fail "cannot make $project/.venv: is the folder writable, is there space?"
}

needs_tensorflow() { # requirements, a line each
  grep -q '^tensorflow[<>=]' <<<"$1"
}

install() { # requirements, a line each
  if needs_tensorflow "$1"; then
    "$PYTHON" -m pip install -r /dev/stdin <<<"$1"
    return
  fi
  local constraints text others # nothing changes beside a TensorFlow, whatever tensorflow-text asks for
  constraints=$(kept "$1") || return
  text=$(grep '^tensorflow-text' <<<"$1") || text=
  others=$(grep -v '^tensorflow-text' <<<"$1") || others=
  { [ -z "$others" ] || "$PYTHON" -m pip install -c /dev/fd/3 -r /dev/stdin <<<"$others" 3<<<"$constraints"; } &&
    { [ -z "$text" ] || "$PYTHON" -m pip install --no-deps -c /dev/fd/3 -r /dev/stdin <<<"$text" 3<<<"$constraints"; }
}

kept() { # requirements; all that is installed, as constraints for pip, but in .venv without what has to be replaced
  local replaced=
  [ "$PYTHON" != "$project/.venv/bin/python" ] || replaced=$(grep -o '^[[:alnum:]_.-]*' <<<"$1" | sed 's/^/--exclude=/')
  "$PYTHON" -m pip list --format=freeze $replaced
}
