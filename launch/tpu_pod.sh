#!/usr/bin/env bash
# One training on all hosts of a Cloud TPU pod slice: created or used again, installed, run, resumed after a preemption.
#
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v5litepod-16 [--version=v2-alpha-tpuv5-lite] [--project=P]
#       [--spot] [--restarts=10] [--logs=logs] [--delete] [--dry-run] -- python -m launch.train --workdir=gs://... ...
#
# The clone is copied to every host and installed there with the extra `tpu`; the command gets --cluster=tpu and runs on
# all of them; what they print comes here, and the whole log of each is fetched into LOGS/NAME/ when it has ended.
# A slice that was preempted is deleted and made again, and a run that ended with 75 (asked to end) is started again, at
# most --restarts times: the workdir must lie in a bucket, for a host's disk goes with its slice. --delete deletes the
# slice when the command has succeeded. --dry-run prints the gcloud calls of a first run. Needs gcloud, logged in.
set -euo pipefail
# shellcheck source=launch/support/flags.sh
. "$(dirname "${BASH_SOURCE[0]}")/support/flags.sh"

name="" zone="" type="" version="v2-alpha-tpuv5-lite" project="" spot="" restarts=10 logs=logs delete="" dry_run=""
read_flags "name zone type version project restarts logs" "spot delete dry-run" "$@"
set -- "${COMMAND[@]}"
[ -n "$name" ] && [ -n "$zone" ] && [ -n "$type" ] || fail "--name, --zone and --type are needed (see --help)"
[[ "$restarts" =~ ^[0-9]+$ ]] || fail "--restarts=$restarts: wanted a number"
[ $# -gt 0 ] || fail "there is no command after --"
[ -n "$dry_run" ] || command -v gcloud >/dev/null || fail "there is no gcloud here; install the Google Cloud CLI"

where=("--zone=$zone" ${project:+"--project=$project"})
tpu() { gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
if [ -n "$dry_run" ]; then
  gcloud() { printf '%q ' gcloud "$@" && echo; }
fi

state() {
  if [ -n "$dry_run" ]; then echo NONE; else tpu describe "$name" --format='value(state)' 2>/dev/null || echo NONE; fi
}

create() {
  tpu create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
}

on_all() { tpu ssh "$name" --worker=all --command="$1"; }

install() {
  local archive
  archive="$(mktemp --suffix=.tgz)"
  tar -C "$ROOT" -czf "$archive" --exclude=./.venv --exclude=./.git --exclude=./runs --exclude=./stores --exclude=./out .
  tpu scp "$archive" "$name:distill.tgz" --worker=all
  # The images' own Python is older than 3.11.
  on_all 'set -e; mkdir -p distill; tar -C distill -xzf distill.tgz
if ! python3 -c "import sys; sys.exit(sys.version_info < (3, 11))"; then
  sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv
fi
cd distill && EXTRAS="[tpu,gcs]" bash -c ". launch/setup.sh"'
}

# ssh may not pass an exit code on, so each host keeps its own.
run() {
  local command
  command="$(printf '%q ' "$@")--cluster=tpu"
  on_all "cd distill; export PATH=\$PWD/.venv/bin:\$PATH; set -o pipefail
$command 2>&1 | tee -a ../distill.log; code=\$?; echo \$code >../distill.code; exit \$code"
}

fetch() {
  mkdir -p "$logs/$name"
  tpu ssh "$name" --worker=all --command='cat distill.log' --output-directory="$logs/$name" || true
}

for ((start = 0; start <= restarts; start++)); do
  while [[ "$(state)" =~ ^(CREATING|STARTING|RESTARTING|REPAIRING)$ ]]; do sleep 10; done
  case "$(state)" in
    READY) ;;
    NONE) create ;;
    PREEMPTED | TERMINATED | STOPPED | FAILED)
      echo "launch/tpu_pod.sh: $name was taken away; it is made again" >&2
      tpu delete "$name" --quiet
      create
      ;;
    *) fail "$name is $(state); wait until it is READY, or give another --name" ;;
  esac
  install
  code=0
  run "$@" || code=$?
  [ -z "$dry_run" ] || exit 0
  now="$(state)"
  if [ "$now" = READY ]; then
    fetch
    code="$(tpu ssh "$name" --worker=0 --command='cat distill.code')" || code=1
  fi
  if [ "$code" -eq 0 ]; then
    [ -z "$delete" ] || tpu delete "$name" --quiet
    exit 0
  fi
  [ "$now" != READY ] || [ "$code" -eq 75 ] || exit "$code"
  echo "launch/tpu_pod.sh: start $start of $name ended with $code ($now); the next continues" >&2
done
fail "$name was started $((restarts + 1)) times; raise --restarts to go on"
