#!/usr/bin/env bash
# kdcache precompute as a Slurm job array: one task a GPU, each one slice of one cache.
#
#   sbatch pipelines/slurm_precompute.sh --data build/train --teacher torchvision:resnet50 \
#     --weights teacher.safetensors --recipe funmatch --views 16 --cache build/cache
#
# Run it where the relative paths and your own teacher module lie, with kdcache on PATH; data and
# cache are on a file system that all nodes share. All after the script's name goes to
# `kdcache precompute` as it is. Copy and edit the lines below, or override them:
#
#   sbatch --array=0-31%8 --gres=gpu:a100:1 --partition=gpu pipelines/slurm_precompute.sh …
#
#   --array     a range: of 0-7, each task computes an eighth; 0-7%2 runs two of them at a time
#   --workers   after the script's name; by default one less than --cpus-per-task
#   KDCACHE     the command in place of kdcache, such as KDCACHE=.venv/bin/kdcache sbatch …
#
# Pre-emption and lost nodes: Slurm itself puts a task back into the queue (--requeue). The time
# limit: Slurm sends USR1 a minute before, kdcache stops (exit code 143, which alone would be a
# failed task) and the task puts itself back. It goes on some two minutes later where it stopped.
# A cancelled task stays cancelled; scancel --batch --signal=USR1 JOB_TASK stops one that goes on.
#
# The same sbatch command again computes only what is missing, with any --array; of a complete cache
# nothing, in seconds. Until it is complete, three times at most:
#
#   for try in 1 2 3; do sbatch --wait pipelines/slurm_precompute.sh … && break; done

#SBATCH --job-name=kdcache
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append
#SBATCH --output=kdcache-%A_%a.log

# What the cluster needs first goes here, such as: source .venv/bin/activate

set -u
options=(--workers "$((${SLURM_CPUS_PER_TASK:-1} - 1))") # those after the script's name win
task=${SLURM_JOB_ID:?"is not set: start this script with sbatch"}
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  # By this name requeue takes one task: the array's last one has the array's own job id.
  task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  first=${SLURM_ARRAY_TASK_MIN:?} count=$SLURM_ARRAY_TASK_COUNT
  if ((SLURM_ARRAY_TASK_MAX - first + 1 != count)); then
    echo "--array: $count numbers with gaps, slices would be missing; give a range, such as 0-7" >&2
    exit 2
  fi
  options+=(--slice "$((SLURM_ARRAY_TASK_ID - first))/$count")
fi

"${KDCACHE:-kdcache}" precompute "${options[@]}" "$@" &
pid=$!

# A signal interrupts `wait`, which is then called again.
trap 'signalled=yes again=yes; kill -TERM "$pid" 2>/dev/null' USR1
trap 'signalled=yes; kill -TERM "$pid" 2>/dev/null' TERM
signalled=yes again=
while [[ -n $signalled ]]; do
  signalled=
  wait "$pid"
  code=$?
done
((code >= 0)) || code=143 # bash 5.2 forgets the status of a child that ends as the signal comes

if [[ -n $again && $code -eq 143 ]]; then
  echo "task $task goes back into the queue"
  scontrol requeue "$task"
fi
exit "$code"
