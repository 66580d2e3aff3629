#!/usr/bin/env bash
# Sourced with a folder: a Slurm cluster of two nodes on this machine, in it, until the script that sources it ends, which
# goes on in the repository's root ($ROOT; the folder is $folder).
#
# Needs Debian's slurm-wlm and munge, and root. slurmd[NODE] is the process of a node's daemon; `kill_node NODE` kills it
# and all that it runs, as a power cut would; `start_node NODE` starts it.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
cd "$ROOT" || exit
host="$(hostname -s)"
export SLURM_CONF="$folder/slurm.conf" JAX_PLATFORMS=cpu
began=$SECONDS

say() { echo "[$((SECONDS - began)) s] $*"; }
fail() { say "FAILED: $*"; tail -n 15 "$folder"/*.log "$folder"/logs/* 2>/dev/null || true; exit 1; }

pids=()
stop() {
  # Jobs first: a daemon with a job waits for a controller that is gone.
  scancel --quiet --signal=KILL --full --user="$(id -un)" 2>/dev/null || true
  scancel --quiet --user="$(id -un)" 2>/dev/null || true
  for _ in {1..30}; do
    squeue --noheader 2>/dev/null | grep -q . || break
    sleep 0.3
  done
  kill "${pids[@]}" 2>/dev/null || true
  for _ in {1..30}; do
    kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 0.3
  done
  kill -KILL "${pids[@]}" 2>/dev/null || true
  wait 2>/dev/null
}
trap stop EXIT

# until WORD SECONDS COMMAND...: waits for a command to succeed.
until_done() {
  local what="$1" deadline=$((SECONDS + $2))
  shift 2
  while ! "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$what did not happen in time"
    sleep 0.3
  done
}

mkdir -p "$folder"/{state,munge,spool-1,spool-2,logs}
chmod 700 "$folder/munge"
head -c 128 /dev/urandom >"$folder/munge/key" && chmod 400 "$folder/munge/key"
cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again waits until its credential has expired: 120 s where this is not set.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
KillWait=5
# A node that does not answer for so long is down, and its jobs are queued again.
SlurmdTimeout=8
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdSpoolDir=$folder/spool-%n
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdLogFile=$folder/slurmd-%n.log
NodeName=$host,$host-2 NodeHostname=$host NodeAddr=127.0.0.1 Port=[16821-16822] CPUs=2
PartitionName=low Nodes=ALL Default=YES LLN=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF
END
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munged.log" --seed-file="$folder/munge/seed" >"$folder/munged.out" 2>&1 &
pids+=($!)
until_done "munged" 10 test -S "$folder/munge/socket"
slurmctld -D -c >"$folder/slurmctld.out" 2>&1 &
pids+=($!)
declare -A slurmd=()
start_node() {
  slurmd -D -c -N "$1" >>"$folder/slurmd-$1.out" 2>&1 &
  slurmd[$1]=$!
  pids+=($!)
}
# What runs on a node knows its name from its environment. Its parents, Slurm's step daemons, go first: else they would
# report what a dead node cannot. False, and nothing is killed, where no job's process is there at this moment.
on_node() { grep -lzxs "SLURMD_NODENAME=$1" /proc/[0-9]*/environ | tr -dc '0-9\n' | tr '\n' ' ' || true; }
kill_node() {
  local pids parents
  pids="$(on_node "$1")"
  [ -n "$pids" ] || return 1
  # shellcheck disable=SC2086 # a list
  parents="$(ps -o ppid=,pid= -p $pids | awk '{ print $1 }' | sort -u | while read -r pid; do
    ! grep -qs slurmstepd "/proc/$pid/comm" || echo "$pid"
  done)"
  # shellcheck disable=SC2086
  kill -KILL "${slurmd[$1]}" $parents $pids 2>/dev/null || true
}
start_node "$host"
start_node "$host-2"
idle() { [ "$(sinfo --noheader --partition=low --states=idle --format=%D)" = 2 ]; }
until_done "a cluster of two idle nodes" 30 idle
say "$(sinfo --version), two nodes on $host"
# Whether no job of a list of ids is left.
gone() { ! squeue --noheader --jobs="$1" --format=%T 2>/dev/null | grep -q .; }
