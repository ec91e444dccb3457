#!/usr/bin/env bash
# 4 workers of this run on one machine.
set -euo pipefail
# ranks of a node share its cores; more threads than cores slow every rank down
export OMP_NUM_THREADS=1
# DeepSpeed must not look for a GPU here
export DS_ACCELERATOR=cpu
# all ranks are on this machine, whatever its network name resolves to
export GLOO_SOCKET_IFNAME=lo
# USR1 asks the workers to save and end. They answer it; torchrun, which would die of it, must not.
trap '' USR1
exec python3 -m torch.distributed.run \
    --nnodes=1 \
    --nproc-per-node=4 \
    --rdzv-backend=c10d \
    --rdzv-endpoint=127.0.0.1:0 \
    --max-restarts=0 \
    --module launcher.runtime.worker /runs/golden
