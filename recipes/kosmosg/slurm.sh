#!/bin/bash
# One training run on several machines of eight GPUs: sbatch slurm.sh STAGE RECIPE [KEY=VALUE ...]
# The job is queued again when its time ends or a machine fails, and goes on from its last checkpoint.
#SBATCH --job-name=kgcli
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc_per_node=8 \
    --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_backend=c10d \
    --rdzv_endpoint="$head_node:29500" \
    -m kgcli "$@" || status=$?

# 130: stopped by the signal, with a checkpoint of the last whole step.
if [ "${status:-0}" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
