#!/usr/bin/env bash
# Units of a study on two hosts at once, as Slurm jobs of two nodes of this machine.
#
#   bash tests/launch/slurm/gang.sh FOLDER     (needs Debian's slurm-wlm and munge, and root; two minutes on two cores)
#
# 1. the second node dies under the teacher   2. the program of one host is killed under a student: both start again, and
# the table is that of one machine, up to the order in which two hosts add
set -euo pipefail
# shellcheck source=tests/launch/slurm/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh" "$1"
export XLA_FLAGS="" PATH="$ROOT/.venv/bin:$PATH" DISTILL_CACHE="${DISTILL_CACHE:-$folder/cache}" COLUMNS=120

study=(python -m launch.study --config=configs/study.py:smoke "--config.study.models=a = 16x1,b = 32x1"
  "--config.study.teachers=b @ 128K" "--config.study.supervised=a @ 8K" "--config.study.distilled=b@128K > a @ 128K"
  --config.study.resamples=16 --config.seq_len=32 --config.batch_size=4 --config.eval.tokens=1024
  --config.optim.warmup_steps=5 --config.loop.steps_per_call=4 --config.loop.log_steps=4
  --config.loop.checkpoint_seconds=1 --config.teacher.signal=online)
left() { squeue --noheader --format="%T %j" | grep -c . || true; }
none_left() { [ "$(left)" -eq 0 ]; }
# The log of the job of a run, which is trained on two hosts: `trains RUN` once it has written metrics.
trains() { [ -s "$folder/gang/runs/$1/metrics.jsonl" ]; }
log_of() { grep -l -- "--part=$1" "$folder"/gang/logs/*.log; }

"${study[@]}" --workdir="$folder/local" >"$folder/local.log" 2>&1 || fail "the local study"
say "the local study is done"
"${study[@]}" --workdir="$folder/gang" "--config.study.places=to 1e9: hosts=2 runs=1" --backend=slurm \
  --engine="--grace=60" | sed 's/^/   /'
read -r teacher student < <(python - "$folder/gang/study.json" <<'END'
import json, sys
(student, teacher), *_ = json.load(open(sys.argv[1]))["teachers"].items()
print(teacher, student)
END
)

say "1. the second node dies under the teacher"
until_done "the training of the teacher" 600 trains "$teacher"
kill_node "$host-2" || fail "there is nothing on the second node"
noticed() { grep -q "due to failure of node $host-2" "$folder/slurmctld.log"; }
until_done "the job of the dead node that is queued again" 300 noticed
start_node "$host-2"

say "2. one host's program is killed under the student"
until_done "the training of the student" 900 trains "$student"
kill_program() {
  local one
  one="$(grep -lzxs "SLURM_PROCID=1" /proc/[0-9]*/environ | tr -dc '0-9\n' | while read -r pid; do
    ! grep -qs python "/proc/$pid/comm" || echo "$pid"
  done | head -n 1 || true)" # grep minds what has ended meanwhile
  [ -n "$one" ] && kill -KILL "$one"
}
until_done "a program on the second host, killed" 30 kill_program
until_done "the end of the study" 900 none_left
for run in "$teacher" "$student"; do
  grep -q "start 1, on" "$(log_of "$run")" || fail "the job of $run was not started again"
  grep -q '"machine": "2 x cpu' "$folder/gang/runs/$run/result.json" || fail "$run was not on two hosts"
done
python -m tests.study.compare "$folder/local" "$folder/gang" near || fail "the two studies differ"
say "   both were started again; the same table; both passed"
