#!/usr/bin/env bash
# 8 workers of this run on one machine.
set -euo pipefail
# ranks of a node share its cores; more threads than cores slow every rank down
export OMP_NUM_THREADS=1
# a failed collective ends its rank instead of hanging the job
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
# keeps the allocator's reserve close to what is used
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# USR1 asks the workers to save and end. They answer it; torchrun, which would die of it, must not.
trap '' USR1
exec python3 -m torch.distributed.run \
    --nnodes=1 \
    --nproc-per-node=8 \
    --rdzv-backend=c10d \
    --rdzv-endpoint=127.0.0.1:0 \
    --max-restarts=0 \
    --module launcher.runtime.worker /runs/golden
