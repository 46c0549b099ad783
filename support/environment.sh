# Sourced by the shell scripts. `use_python FILE...` sets PYTHON to an interpreter that meets the requirement files;
# `explain "$@"` answers --help.
#
# It uses python3 if that has the packages (Colab), otherwise .venv. It installs what is missing once:
#   * into .venv if that exists;
#   * else into the environment of python3, on Colab or if an active virtual environment has TensorFlow;
#   * else into a new .venv. If python3 has a suitable TensorFlow (a container, conda, a cluster's module), .venv sees it.
# Packages outside .venv never change.

set -euo pipefail
unset CDPATH PYTHONSAFEPATH # cd would print the folder; Python would not find the modules next to a program

fail() {
  echo "error: $*" >&2
  exit 1
}

pwd -P >/dev/null 2>&1 || fail "the current folder has been removed: change to one that exists"
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

explain() { # flags; if --help is one of them, prints the comment at the top of the script and exits
  case " $* " in *" --help "*) sed -n '2,/^\[/s/^# //p' "$0"; exit ;; esac
}

missing() { # interpreter, requirement files; fails if the interpreter does
  "$1" "$project/support/missing_packages.py" "${@:2}" 2>/dev/null
}

fits() { # interpreter, requirement files
  local lacks
  lacks=$(missing "$@") && [ -z "$lacks" ]
}

in_one_line() {
  paste -sd ' ' -
}

use_python() { # requirement files
  local base packages where log venv=$project/.venv
  for PYTHON in python3 "$venv/bin/python"; do
    if fits "$PYTHON" "$@"; then return; fi
  done
  base=$(supported_python)
  if [ -e "$venv" ] || [ -L "$venv" ]; then
    "$PYTHON" -c '' 2>/dev/null || fail "the Python in $venv does not start: delete this folder, then try again"
    where="into .venv"
  elif needs_tensorflow "$(missing "$base" "$@")"; then
    "$base" -c 'import venv, ensurepip' 2>/dev/null ||
      fail "$base has no venv module: install it (Debian and Ubuntu: apt install python3-venv)"
    make_venv "$base"
    where="into .venv"
  elif is_own_environment "$base"; then
    PYTHON=$base
    where="alongside its TensorFlow"
  else
    make_venv "$base" --system-site-packages --without-pip
    where="into .venv, alongside the TensorFlow of $base"
  fi

  packages=$(missing "$PYTHON" "$@")
  if needs_tensorflow "$packages"; then
    if nvidia-smi >/dev/null 2>&1; then packages+=$'\ntensorflow[and-cuda]'; fi
    echo "installing TensorFlow and the other packages $where: this takes minutes and gigabytes, once"
  else
    echo "installing $(in_one_line <<<"$packages") $where, once"
  fi
  log=$(mktemp "${TMPDIR:-/tmp}/install.XXXXXX")
  install "$packages" >"$log" 2>&1 || fail_installation "$packages" "$log"
  fits "$PYTHON" "$@" ||
    fail "pip succeeded, but $PYTHON still lacks $(missing "$PYTHON" "$@" | in_one_line)." \
      "Check pip's settings, such as PIP_TARGET. Its output is in $log"
  rm "$log"
}

supported_python() { # prints its name
  local name reply
  for name in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  reply=$(python3 -c 'import platform; print(platform.python_version())' 2>&1 | grep -E '^[0-9]|not found|Error: ' | tail -n 1)
  fail "Python 3.10 to 3.13 is required, but python3 reports ${reply:-nothing}: install or repair it"
}

is_own_environment() { # interpreter: one that people install into
  [ -n "${COLAB_RELEASE_TAG:-}" ] || "$1" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'
}

make_venv() { # interpreter, options
  "$1" -m venv "${@:2}" "$project/.venv" || fail "cannot create $project/.venv: is the folder writable and the disk not full?"
}

needs_tensorflow() { # requirements, one a line
  grep -q '^tensorflow[<>=]' <<<"$1"
}

install() { # requirements, one a line
  if needs_tensorflow "$1"; then
    "$PYTHON" -m pip install -r /dev/stdin <<<"$1"
    return
  fi
  # Nothing outside .venv may change. tensorflow-text would replace TensorFlow, so its dependencies are left out.
  local constraints name options
  constraints=$(kept "$1") || return
  while read -r name; do
    options=
    case $name in tensorflow-text*) options=--no-deps ;; esac
    "$PYTHON" -m pip install $options -c /dev/fd/3 "$name" 3<<<"$constraints" </dev/null || return
  done <<<"$1"
}

kept() { # requirements; prints the installed packages as constraints, without those of .venv to be replaced
  local replaced=
  [ "$PYTHON" != "$project/.venv/bin/python" ] || replaced=$(grep -o '^[[:alnum:]_.-]*' <<<"$1" | sed 's/^/--exclude=/')
  "$PYTHON" -m pip list --format=freeze $replaced
}

fail_installation() { # requirements, one a line; pip's output
  local stays
  if stays=$(grep -o '(constraint) .*' "$2"); then
    fail "cannot install $(in_one_line <<<"$1") without changing $(echo ${stays//(constraint) /}): use another environment," \
      "or run $PYTHON -m pip install $(sed "s/.*/'&'/" <<<"$1" | in_one_line). The output of pip is in $2"
  fi
  fail "the installation failed ($(grep -i 'error\|no module named' "$2" | tail -n 1)). The output of pip is in $2"
}
