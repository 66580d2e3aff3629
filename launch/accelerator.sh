#!/usr/bin/env bash
# Everything that is asked of a GPU or TPU, in at most nine minutes: right? how fast? how much memory?
#   bash launch/accelerator.sh [--out=FILE.json] [--page=FILE.md] [flags of `launch.bench accelerator`]
# Run again, it does what is missing. Its page belongs into docs/results.
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  EXTRAS="[cuda]"
elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then
  EXTRAS="[tpu]"
else
  EXTRAS=""
  echo "no GPU or TPU here: the CPU is measured, on a small shape"
fi
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

cd "$ROOT"
exec "$PYTHON" -m launch.bench accelerator --out=docs/results/accelerator.json --page=docs/results/accelerator.md "$@"
