#!/usr/bin/env bash
# Run this on each of the 8 nodes, which must all see the run directory, with HEAD_NODE set to
# the name of one of them and HEAD_PORT to a port that is free there.
set -euo pipefail
# ranks of a node share its cores; more threads than cores slow every rank down
export OMP_NUM_THREADS=1
# a failed collective ends its rank instead of hanging the job
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
# keeps the allocator's reserve close to what is used
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# collectives and matrix products start in the order of their submission
export CUDA_DEVICE_MAX_CONNECTIONS=1
# USR1 asks the workers to save and end. They answer it; torchrun, which would die of it, must not.
trap '' USR1
exec python3 -m torch.distributed.run \
    --nnodes=8 \
    --nproc-per-node=8 \
    --rdzv-backend=c10d \
    --rdzv-endpoint="${HEAD_NODE:?}:${HEAD_PORT:?}" \
    --max-restarts=0 \
    --module launcher.runtime.worker /runs/golden
