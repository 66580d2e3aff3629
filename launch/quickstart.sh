#!/usr/bin/env bash
# From a clone to a report: sets up .venv, then runs the smoke study on real text that ships with the package.
#   bash launch/quickstart.sh [WORKDIR] [--config.FIELD=VALUE ...]
# Run again, it continues where it was stopped, or finishes at once because everything is done.
EXTRAS=""
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

workdir="$ROOT/runs/smoke"
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  workdir="$1"
  shift
fi
echo "python -m launch.study --config=configs/study.py:smoke --workdir=$workdir $*"
exec "$PYTHON" -m launch.study --config=configs/study.py:smoke --workdir="$workdir" "$@"
