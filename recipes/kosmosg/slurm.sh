#!/bin/bash
# One training run on several machines of eight GPUs: sbatch slurm.sh STAGE RECIPE [KEY=VALUE ...]
# Five minutes before the job's time ends, SLURM's signal makes kg save and leave with 130; the job is then queued again
# and goes on from that checkpoint. A wrong recipe ends it for good.
#SBATCH --job-name=kgcli
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500

status=0
# shellcheck disable=SC2016 (each task expands its own numbers)
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python -m kgcli "$@"' kg "$@" ||
    status=$?

if [ "$status" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
