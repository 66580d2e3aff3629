#!/usr/bin/env bash
# One command as several processes of this machine, as it would run on several machines.
#
#   bash launch/local.sh --processes=N [--devices=D] [--dry-run] -- python -m launch.train --workdir=DIR ...
#
# --devices=D gives each process D devices of its CPU. Process 0 prints; the others only where something goes wrong.
# SIGTERM or Ctrl-C saves and ends all of them with exit code 75: run the same command again to continue. Where one dies
# the others end by themselves, within seconds.
set -euo pipefail
# shellcheck source=launch/support/flags.sh
. "$(dirname "${BASH_SOURCE[0]}")/support/flags.sh"

processes="" devices="" dry_run=""
read_flags "processes devices" "dry-run" "$@"
set -- "${COMMAND[@]}"
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || fail "--processes=$processes: wanted a number of at least 1"
[[ "$devices" =~ ^[0-9]*$ ]] || fail "--devices=$devices: wanted a number"
[ $# -gt 0 ] || fail "there is no command after --"

[ ! -x "$ROOT/.venv/bin/python" ] || PATH="$ROOT/.venv/bin:$PATH"
variables=()
if [ -n "$devices" ]; then
  variables=("JAX_PLATFORMS=cpu" "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices")
fi
port=$((20000 + (RANDOM + $$) % 10000))
pids=()
# A notice to one stops all at the same step. Bash keeps Ctrl-C from what it runs in the background.
heard=""
notify() {
  heard=yes
  [ ${#pids[@]} -eq 0 ] || kill -TERM "${pids[0]}" 2>/dev/null || true
}
trap notify TERM INT # before any of them starts: who sees one running may send it
for ((i = 0; i < processes; i++)); do
  command=(env "${variables[@]}" "$@" "--coordinator=127.0.0.1:$port" "--processes=$processes" "--process=$i")
  if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}" && echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done
[ -z "$heard" ] || notify # it may have come before the first one's number was known

worst=0
for pid in "${pids[@]}"; do
  while :; do
    heard="" code=0
    wait "$pid" || code=$?
    [ -n "$heard" ] || break # else it was the notice that ended the waiting
  done
  [ "$code" -eq 0 ] || [ "$worst" -ne 0 ] || worst=$code
done
exit "$worst"
