#!/usr/bin/env bash
# Slurm for real, on one machine: two nodes, launch/slurm.sh, and what it promises.
#
#   bash tests/launch/slurm/run.sh FOLDER     (needs Debian's slurm-wlm and munge, and root; about two minutes on two cores)
#
# 1. one training on two nodes   2. a sweep of four runs as an array   3. a preemption: saved, queued again, finished
set -euo pipefail
# shellcheck source=tests/launch/slurm/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh" "$1"
export XLA_FLAGS="--xla_backend_optimization_level=1"

common=(python -m launch.train --config=configs/train.py:micro --config.seq_len=32 --config.eval.tokens=2048
  "--config.data.cache=$folder/text" --config.loop.steps_per_call=4 --config.loop.log_steps=4)
submit() { bash launch/slurm.sh --logs="$folder/logs" --grace=60 "$@" | awk '{ print $NF }'; }
loss() { grep -o '"loss": [0-9.]*' "$1/result.json"; }
near() { awk -v a="${1#*: }" -v b="${2#*: }" 'BEGIN { exit !((a - b) ^ 2 <= (1e-5 * b) ^ 2) }'; }

say "1. one training on two nodes"
job=$(submit --name=two --nodes=2 -- "${common[@]}" --config.tokens=6400 --workdir="$folder/two")
until_done "the training on two nodes" 150 gone "$job"
[ -s "$folder/two/result.json" ] || fail "job $job left no result"
grep -q '"machine": "2 x cpu' "$folder/two/result.json" || fail "it did not train on two processes"
say "   $(loss "$folder/two") on $(grep -o '2 x cpu' "$folder/two/result.json")"

say "2. a sweep of four runs, two at a time"
for rate in 0.003 0.005 0.01 0.02; do
  echo "${common[*]} --config.tokens=6400 --config.optim.learning_rate=$rate --workdir=$folder/rate-$rate"
done >"$folder/commands.txt"
job=$(submit --name=sweep --array="$folder/commands.txt" --parallel=2)
until_done "the sweep" 240 gone "$job"
for rate in 0.003 0.005 0.01 0.02; do
  [ -s "$folder/rate-$rate/result.json" ] || fail "the run at $rate left no result"
  say "   rate $rate: $(loss "$folder/rate-$rate")"
done
# 0.01 is the preset's own rate, so this is the run of the two nodes in one process.
near "$(loss "$folder/two")" "$(loss "$folder/rate-0.01")" || fail "two nodes do not end where one process ends"

say "3. a preemption"
long=("${common[@]}" --config.tokens=128K --config.loop.checkpoint_seconds=1e9)
job=$(submit --name=low --nodes=2 --sbatch="--partition=low --exclusive" -- "${long[@]}" --workdir="$folder/low")
until_done "the first steps" 150 test -s "$folder/low/metrics.jsonl"
high=$(sbatch --parsable --partition=high --nodes=2 --exclusive --output=/dev/null --wrap="sleep 2")
until_done "the urgent job" 120 gone "$high"
until_done "the preempted job" 240 gone "$job"
log="$folder/logs/low-$job.log"
grep -q "asked to end: step [0-9]* of 1000 is saved" "$log" || fail "it was not saved"
[ "$(grep -c "^\[.*job $job, start" "$log")" -ge 2 ] || fail "it was not started again"
grep -q "job $job, start 1" "$log" || fail "Slurm does not count the restart"
[ -s "$folder/low/result.json" ] || fail "it did not finish"
grep -E "^\[|asked to end" "$log" | sed 's/^/   /'
say "   $(loss "$folder/low"); all three passed"
