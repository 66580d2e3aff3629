# shellcheck shell=bash
# Sourced by the other scripts: finds a Python, makes .venv and installs the project into it, once for each setup.cfg.
# Needs $EXTRAS (e.g. "" or "[test]"); leaves $ROOT and $PYTHON.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

fail() { echo "error: $*" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "$candidate"
      return
    fi
  done
  fail "distill needs Python 3.11 or newer; found $(python3 --version 2>&1 || echo none). Install one and run this again."
}

free_mib() { df -Pm "$ROOT" | awk 'NR == 2 { print $4 }'; }

install() {
  local wanted base
  wanted="$(cksum <"$ROOT/setup.cfg")"
  if [ -x "$PYTHON" ] && [ "$(cat "$ROOT/.venv/.installed$EXTRAS" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  base="$(find_python)"
  [ "$(free_mib)" -ge 2500 ] || fail "only $(free_mib) MiB free in $ROOT; the installation needs about 2500. Make room and run this again."
  echo "installing distill$EXTRAS into .venv with $("$base" --version) (about a minute)"
  [ -x "$PYTHON" ] || "$base" -m venv "$ROOT/.venv" ||
    fail "$base cannot make a virtual environment (on Debian: apt-get install python3-venv)."
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$ROOT$EXTRAS" ||
    fail "pip could not install distill$EXTRAS; its message is above (no network? disk full: $(free_mib) MiB free)."
  echo "$wanted" >"$ROOT/.venv/.installed$EXTRAS"
}

install
