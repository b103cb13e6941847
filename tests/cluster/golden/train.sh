#!/bin/bash
#SBATCH --job-name=mine
#SBATCH --partition=gpu
#SBATCH --account=lab-1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --output="/shared/runs/it's 100%%/submission/logs/job-%j.out"
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --exclude=node[3,7]
#
# One job of a training run, made by narrowbert-submit. It starts one process a rank, starts them again in the same
# job when one crashes, and goes back into the queue after a checkpoint. The run is over when RUN_DIR/DONE is there,
# and only then: an exit code says less, srun may return 0 after a node was lost.
set -uo pipefail

readonly run_dir='/shared/runs/it'"'"'s 100%'
readonly work_dir=/home/me
readonly command=('/opt/a b/bin/python' -P -m pipeline train --config '/shared/runs/it'"'"'s 100%/submission/config.yaml')
readonly container_options=('--container-image=nvcr.io#nvidia/pytorch:25.10-py3' --container-mounts=/shared:/shared)
readonly nodes=2 processes_per_node=8 cpus_per_process=12
readonly max_crashes=3 max_requeues=100 continue_by=requeue

readonly submission="$run_dir/submission"
readonly generation="${1:-0}" # jobs of this run before this one, where each sends its successor
readonly restart="${SLURM_RESTART_COUNT:-0}"
readonly me="job $SLURM_JOB_ID, requeued $restart times"
readonly user_error=2 please_requeue=85 not_shared=97

say() { printf '%s narrowbert job %s: %s\n' "$(date +%H:%M:%S)" "$SLURM_JOB_ID" "$*"; }

# ------------------------------------------------------------------------------------------ environment

unset RANK LOCAL_RANK WORLD_SIZE "${!OMPI_COMM_WORLD_@}" MASTER_ADDR MASTER_PORT NARROWBERT_LAUNCHER_PID \
  OMP_NUM_THREADS # of the sender
set +u # what a site sources need not be written for it
# shellcheck source=/dev/null
. '/opt/site'"'"'s/setup.sh' || { say 'cluster.setup_script failed'; exit 2; }
if ! command -v module >/dev/null; then
  for file in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /usr/share/lmod/lmod/init/bash; do
    # shellcheck source=/dev/null
    [ -r "$file" ] && . "$file" && break
  done
fi
module load cuda/12.8 || { say 'cluster.modules failed'; exit 2; }
export NCCL_DEBUG=WARN
export ODD_VALUE='it'"'"'s; two "words"'
set +eE -uo pipefail
trap - ERR EXIT
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus_per_process}" PYTHONUNBUFFERED=1
cd "$work_dir" || { say "cannot enter the folder $work_dir"; exit "$user_error"; }

# ------------------------------------------------------------------------------------------ the queue

# A job sent from inside a job would take over what SLURM_* says of this one.
send_again() (
  parent=$SLURM_JOB_ID
  for name in "${!SLURM_@}"; do
    [ "$name" = SLURM_CONF ] || unset "$name"
  done
  id=$(timeout 60 sbatch --parsable --dependency="afterany:$parent" "$submission/job.sh" "$((generation + 1))") || exit 1
  printf '%s\n' "${id%%;*}" >"$submission/successor-of-$parent"
  printf '%s\n' "${id%%;*}" >>"$submission/jobs"
)

readonly successor="$submission/successor-of-$SLURM_JOB_ID"

drop_successor() {
  if [ -s "$successor" ]; then
    timeout 60 scancel "$(cat "$successor")"
    rm -f "$successor"
  fi
}

# Somebody may have cancelled the waiting job. Without an answer it is taken to wait.
has_successor() {
  [ -s "$successor" ] || return 1
  job=$(timeout 60 scontrol --oneliner show job "$(cat "$successor")" 2>&1)
  case $job in
    *"Invalid job id"* | *" JobState=CANCELLED "*) return 1 ;;
  esac
}

# A job that Slurm has given up with its node may still run there, beside the start that has taken its place.
stop_if_taken_over() {
  if newest=$(cat "$submission/current") && [ "$newest" != "$me" ]; then
    say "a newer start of this run has taken over: this one ends"
    exit 1
  fi
}

end() { # code, what to say
  say "$2"
  drop_successor
  exit "$1"
}

# By scancel: Slurm ends the job, and not for its time limit (a Reason), for another job (PreemptTime) or to requeue it.
is_cancelled() {
  job=$(timeout 60 scontrol --oneliner show job "$SLURM_JOB_ID")
  [[ $job == *" JobState=COMPLETING Reason=None "* && $job == *" PreemptTime=None "* &&
    $job == *" Restarts=$restart "* ]]
}

go_back_to_the_queue() {
  stop_if_taken_over
  if [ -e "$submission/cancelled" ] || is_cancelled; then
    end 0 "cancelled; narrowbert-submit train with the same options goes on from the last checkpoint"
  fi
  if [ "$restart" -ge "$max_requeues" ] || [ "$generation" -ge "$max_requeues" ]; then
    end 1 "not done after $max_requeues times back in the queue (cluster.max_requeues): giving up"
  fi
  if has_successor; then
    say "job $(cat "$successor") goes on"
    exit 0
  fi
  if [ "$continue_by" = requeue ]; then
    for _ in 1 2 3 4 5 6; do # the controller may be away for a while
      if timeout 60 scontrol requeue "$SLURM_JOB_ID"; then
        say "back in the queue"
        sleep 60 & # Slurm ends this script here
        wait
        exit 0
      fi
      sleep 10
    done
    say "Slurm does not requeue this job: sending another one"
  fi
  send_again || end 1 "cannot send a job that goes on: narrowbert-submit train with the same options does"
  say "job $(cat "$successor") goes on"
  exit 0
}

# ------------------------------------------------------------------------------------------ the ranks

step_pid=
stopping=

# srun hands USR1 on to every rank. TERM must not reach it: srun would kill the ranks.
pass_on() {
  stopping=yes
  if [ -n "$step_pid" ]; then
    kill -USR1 "$step_pid"
  fi
}
trap pass_on USR1 TERM

# Each rank's exit code is kept apart: srun's own is that of the worst rank, often one that was merely killed along.
# A rank that asks for a requeue ends well in srun's eyes, else srun would kill slower ranks in their checkpoint.
# shellcheck disable=SC2016
readonly rank_script='
trap : USR1 TERM
codes=$1
shift
"$@"
code=$?
printf "%s\n" "$code" >"$codes/$SLURM_PROCID"
[ "$code" -eq 85 ] && exit 0
exit "$code"
'

# shellcheck disable=SC2016
readonly look_script='
[ -e "$1/job.sh" ] && exit 0
printf "%s\n" "the run directory is not there on $SLURMD_NODENAME: it must be on a file system that all nodes share"
exit 97
'

await() { # process: its exit code becomes $status
  wait "$1"
  status=$?
  while [ -e "/proc/$1/exe" ]; do # a signal ends wait early
    wait "$1"
    status=$?
  done
}

# Ranks on a node that is gone would fail at once, again and again, long before Slurm notices. When it does, it ends
# this script and puts the job on other nodes.
wait_for_nodes() {
  for _ in {1..20}; do
    timeout --kill-after=10 90 srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --mpi=none \
      --kill-on-bad-exit=0 bash -c "$look_script" look "$submission" </dev/null &
    await $!
    if [ "$status" -eq 0 ] || [ -n "$stopping" ]; then
      return
    fi
    if [ "$status" -eq "$not_shared" ] && [ -z "$(newest_checkpoint)" ]; then # later it is the node that is at fault
      end "$user_error" "$run_dir is not shared by all nodes"
    fi
    say "not every node answers (srun: $status)"
    sleep 30 &
    await $!
    stop_if_taken_over
  done
  go_back_to_the_queue
}

run_ranks() { # number of the try
  codes="$submission/codes/$SLURM_JOB_ID-$restart-$1"
  rm -rf "$codes"
  mkdir -p "$codes"
  MASTER_PORT=$((20000 + (SLURM_JOB_ID * 97 + restart * 31 + $1) % 12000)) # a port once used may still be held
  export MASTER_PORT
  srun --nodes="$nodes" --ntasks="$((nodes * processes_per_node))" --ntasks-per-node="$processes_per_node" \
    --cpus-per-task="$cpus_per_process" --distribution=block --mpi=none --kill-on-bad-exit=1 --label \
    "${container_options[@]}" bash -c "$rank_script" rank "$codes" "${command[@]}" </dev/null &
  step_pid=$!
  await "$step_pid"
  step_pid=
}

any_rank_ended_with() { grep -qsx "$1" "$codes"/*; }

newest_checkpoint() { cat "$run_dir/checkpoints/latest" 2>/dev/null; }

# ------------------------------------------------------------------------------------------ the job

[ -e "$run_dir/DONE" ] && end 0 "$run_dir is finished: nothing to do"
[ -e "$submission/cancelled" ] && end 0 "cancelled"
if [ "$continue_by" = resubmit ] && ! has_successor && [ "$generation" -lt "$max_requeues" ]; then
  send_again || say "cannot send the job that goes on should this one be cancelled"
fi
hosts=$(timeout 60 scontrol show hostnames "$SLURM_JOB_NODELIST") || end 1 "cannot read the node list $SLURM_JOB_NODELIST"
export MASTER_ADDR="${hosts%%$'\n'*}"
printf '%s\n' "$me" >"$submission/current" || end "$user_error" "cannot write $submission/current"
say "start $((restart + 1)) on ${hosts//$'\n'/ }"

crashes=0
for ((try = 1; ; try++)); do
  stop_if_taken_over
  wait_for_nodes
  before=$(newest_checkpoint)
  [ -n "$stopping" ] && go_back_to_the_queue
  run_ranks "$try"
  stop_if_taken_over # before anything below ends with the successor, which may be that newer start
  [ -e "$run_dir/DONE" ] && end 0 "done"
  if any_rank_ended_with "$user_error" && [ -z "$before" ]; then # with a checkpoint it has worked: a node is at fault
    end "$user_error" "the configuration cannot work, a rank says why above"
  fi
  if [ -n "$stopping" ] || any_rank_ended_with "$please_requeue"; then
    go_back_to_the_queue
  fi
  [ "$(newest_checkpoint)" = "$before" ] || crashes=0
  crashes=$((crashes + 1))
  if [ "$crashes" -ge "$max_crashes" ]; then
    end 1 "$crashes crashes in a row without a new checkpoint (cluster.max_crashes): giving up"
  fi
  say "the ranks ended before the run was done (srun: $status); starting them again"
  sleep 2
done
