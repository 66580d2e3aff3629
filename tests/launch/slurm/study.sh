#!/usr/bin/env bash
# A study as a DAG of Slurm jobs, on two nodes of this machine.
#
#   bash tests/launch/slurm/study.sh FOLDER     (needs Debian's slurm-wlm and munge, and root; three minutes on two cores)
#
# 1. nine runs on this machine, and as jobs while a node is killed: the same tables and laws   2. submitted twice
# 3. a teacher that fails: its students are cancelled, all else ends; mended, the same command does what is left
set -euo pipefail
# shellcheck source=tests/launch/slurm/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh" "$1"
export XLA_FLAGS="" PATH="$ROOT/.venv/bin:$PATH" DISTILL_CACHE="${DISTILL_CACHE:-$folder/cache}" COLUMNS=120

study=(python -m launch.study --config=configs/study.py:smoke "--config.study.models=a = 16x1,b = 32x1"
  "--config.study.teachers=b @ 8K" "--config.study.supervised=a b @ 4K 6K 8K" "--config.study.distilled=b@8K > a b @ 6K"
  --config.study.resamples=16 --config.seq_len=32 --config.batch_size=4 --config.eval.tokens=1024
  --config.optim.warmup_steps=5 "--config.study.places=to 1e9: runs=2")
submit() { "${study[@]}" --backend=slurm --engine="--grace=60" "$@"; }
left() { squeue --noheader --format="%T %j" | grep -c . || true; }
none_left() { [ "$(left)" -eq 0 ]; }

say "1. nine runs on this machine, and as jobs while a node is killed"
"${study[@]}" --workdir="$folder/local" >"$folder/local.log" 2>&1 || fail "the local study"
say "   the local study is done"
submit --workdir="$folder/dag" | sed 's/^/   /'
say "2. the same command while they are queued"
again="$(submit --workdir="$folder/dag")"
grep -q "^0 jobs submitted" <<<"$again" || fail "a second submission: $again"
# A fast machine ends a job in two seconds: it is caught by its process, soon after that began, or the next one is.
caught() {
  [ -n "$(on_node "$host-2")" ] && sleep 1 && kill_node "$host-2"
}
until_done "a job on the second node, killed with it" 300 caught
say "   killed the second node under $(squeue --noheader --states=running --nodelist="$host-2" --format=%j | tr '\n' ' ')"
noticed() { grep -q "due to failure of node $host-2" "$folder/slurmctld.log"; }
until_done "a job of the dead node that is queued again" 120 noticed
start_node "$host-2"
until_done "the end of the study" 900 none_left
python -m tests.study.compare "$folder/local" "$folder/dag" || fail "the two studies differ"
restarted="$(cat "$folder"/dag/logs/*.log | grep -c "start [1-9][0-9]*, on" || true)"
[ "$restarted" -ge 1 ] || fail "no job was started again"
say "   the same tables and laws; jobs started again: $restarted"

say "3. a teacher that fails"
"${study[@]}" --backend=print --workdir="$folder/bad" >"$folder/bad.jsonl" 2>"$folder/bad.log" || fail "the plan"
run="$(python -c "import json, sys; print(*{*json.load(open(sys.argv[1]))['teachers'].values()})" "$folder/bad/study.json")"
mkdir -p "$folder/bad/runs/$run" && echo nonsense >"$folder/bad/runs/$run/config.txt"
submit --workdir="$folder/bad" >"$folder/bad.log" || fail "the submission"
until_done "the end of the study" 900 none_left
[ -s "$folder/bad/runs/$run/error.txt" ] || fail "the teacher $run did not fail"
[ "$(find "$folder/bad/runs" -name result.json | wc -l)" -eq 6 ] || fail "wanted the six runs that need no teacher"
[ -s "$folder/bad/report/index.html" ] || fail "there is no report of the others"
rm "$folder/bad/runs/$run/config.txt"
sent="$(submit --workdir="$folder/bad" --follow)"
grep -q "4 jobs submitted" <<<"$sent" || fail "wanted the teacher, predict, the students, conclude: $sent"
grep -q "9/9" <<<"$sent" || fail "the screen that follows: $sent"
python -m tests.study.compare "$folder/local" "$folder/bad" || fail "the mended study differs"
say "   mended and submitted again, it is the same study; all three passed"
