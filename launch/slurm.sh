#!/usr/bin/env bash
# One training on several nodes of a Slurm cluster, or one run a line of a file as an array of jobs.
#
#   bash launch/slurm.sh [--name=train] [--nodes=1] [--tasks-per-node=1] [--gpus-per-node=0] [--time=HH:MM:SS]
#       [--logs=logs] [--grace=120] [--dependency=afterok:JOB...] [--sbatch='--partition=P --account=A ...'] [--dry-run] -- python -m launch.train ...
#   bash launch/slurm.sh [the same flags] --array=COMMANDS.txt [--parallel=N]
#
# One task a node sees all its GPUs (--gpus-per-node); with several tasks the command gets --cluster=slurm. COMMANDS.txt
# has one command a line (empty lines and # are left out); each is a job of the array, N of them at once.
# A job that is preempted, or within --grace seconds of its time limit, saves itself, ends with 75 and is queued again
# under its own number: its next start continues. So is, up to three times, a job that lost a program to a signal, or
# to the end of another host's. Logs are LOGS/NAME-JOB.log, appended over restarts.
# --dependency is Slurm's own; a job that can no more start is cancelled.
# --dry-run prints the batch script that would be submitted. Submit from the clone, on a file system that all nodes see.
set -euo pipefail
# shellcheck source=launch/support/flags.sh
. "$(dirname "${BASH_SOURCE[0]}")/support/flags.sh"

name=train nodes=1 tasks_per_node=1 gpus_per_node=0 time="" logs=logs grace=120 sbatch="" array="" parallel="" dependency=""
dry_run=""
read_flags "name nodes tasks-per-node gpus-per-node time logs grace sbatch array parallel dependency" "dry-run" "$@"
set -- "${COMMAND[@]}"
for number in "nodes=$nodes" "tasks-per-node=$tasks_per_node" "gpus-per-node=$gpus_per_node" "grace=$grace" \
  "parallel=${parallel:-1}"; do
  [[ "$number" =~ =[0-9]+$ ]] || fail "--$number: wanted a number"
done
[[ "$name" =~ ^[A-Za-z0-9._-]+$ ]] || fail "--name=$name: wanted letters, digits, '.', '_' and '-'"

commands=() pattern="%j"
if [ -n "$array" ]; then
  [ $# -eq 0 ] || fail "got both --array and a command"
  [ -r "$array" ] || fail "--array=$array: there is no such file"
  while IFS= read -r line || [ -n "$line" ]; do
    [[ "$line" =~ ^[[:space:]]*(#|$) ]] || commands+=("$line")
  done <"$array"
  [ "${#commands[@]}" -gt 0 ] || fail "--array=$array: has no command"
  pattern="%A-%a"
else
  [ $# -gt 0 ] || fail "there is no command after --"
  commands=("$*")
  [ $# -eq 1 ] || commands=("$(printf '%q ' "$@")") && commands=("${commands[0]% }")
fi
suffix=""
[ $((nodes * tasks_per_node)) -eq 1 ] || suffix=" --cluster=slurm"

script() {
  echo "#!/usr/bin/env bash"
  echo "#SBATCH --job-name=$name"
  echo "#SBATCH --nodes=$nodes --ntasks-per-node=$tasks_per_node"
  [ "$gpus_per_node" -eq 0 ] || echo "#SBATCH --gpus-per-node=$gpus_per_node"
  [ -z "$time" ] || echo "#SBATCH --time=$time"
  echo "#SBATCH --requeue --open-mode=append --signal=B:USR1@$grace"
  echo "#SBATCH --output=$logs/$name-$pattern.log"
  [ -z "$array" ] || echo "#SBATCH --array=0-$((${#commands[@]} - 1))${parallel:+%$parallel}"
  # A job whose dependency has failed would be pending for ever, and all that comes after it.
  [ -z "$dependency" ] || echo "#SBATCH --dependency=$dependency --kill-on-invalid-dep=yes"
  [ -z "$sbatch" ] || echo "#SBATCH $sbatch"
  printf 'cd %q\n' "$ROOT"
  # shellcheck disable=SC2016 # for the node to expand
  echo 'export PATH="$PWD/.venv/bin:$PATH"'
  echo "commands=("
  printf '  %q\n' "${commands[@]/%/$suffix}"
  echo ")"
  cat <<'END'
command="${commands[${SLURM_ARRAY_TASK_ID:-0}]}"
echo "[$(date -u +%FT%TZ)] job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST: $command"
srun --kill-on-bad-exit=1 bash -c "$command" &
pid=$! heard=yes noticed=""
# A notice is passed on to the tasks, which save at the same step; a second one changes nothing.
trap 'heard=yes noticed=yes; scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null' USR1 TERM
while [ -n "$heard" ]; do
  heard="" code=0
  wait "$pid" || code=$?
done
echo "[$(date -u +%FT%TZ)] job $SLURM_JOB_ID ends with $code"
# 143: at the first task that ends with 75 srun ends the others, one of which may not quite have done so by itself.
again() { [ "$code" -eq 75 ] || { [ "$code" -eq 143 ] && [ -n "$noticed" ]; }; }
# A program was killed or aborted (128 + the signal), or another host's has ended (69). More often it is the command's fault.
lost() { [[ "$code" =~ ^(69|134|137|139)$ ]] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; }
if again || lost; then
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # until Slurm ends this start of the job
fi
exit "$code"
END
}

text="$(script)"
if [ -n "$dry_run" ]; then
  echo "$text"
  exit 0
fi
command -v sbatch >/dev/null || fail "there is no sbatch here; run this on a login node of the cluster"
cd "$ROOT" # of which --logs=logs is a folder, wherever this was called
mkdir -p "$logs" || fail "--logs=$logs: the folder cannot be made"
sbatch <<<"$text"
