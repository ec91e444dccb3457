#!/usr/bin/env bash
# 16 workers on 2 nodes. Code: commit 0123456789ab.
# Without a word it has Open MPI start it again once on every host, with the word `host`.

# Text in single quotes means itself.
# shellcheck disable=SC2016,SC1003
set -uo pipefail
# USR1 asks the workers to save and end. Until the agent answers it, nobody must end.
trap '' USR1
run_dir='/runs/r 1'
python=python

if [ "${1:-}" != host ]; then
    # A job that was started inside another one of Open MPI has nothing of it.
    unset "${!PMI@}" "${!PRTE_@}" "${!OMPI_COMM_WORLD_@}" "${!OMPI_MCA_orte_@}" \
        "${!OMPI_MCA_ess@}" OMPI_MCA_pmix OMPI_MCA_initial_wdir OMPI_UNIVERSE_SIZE
    set --
    [ "$(id -u)" != 0 ] || set -- --allow-run-as-root
    # a secret: its value comes from this shell, and is not here
    : "${WANDB_API_KEY:?is not set}"
    # One process per host starts the workers there; no core is its own.
    exec mpirun "$@" -np 2 --map-by ppr:1:node --bind-to none --host node-a:1,10.0.0.2:1 -x WANDB_API_KEY \
        --wdir "$run_dir" bash "$run_dir/command.sh" host
fi
number=${OMPI_COMM_WORLD_RANK:?is set by mpirun}

# What the submitting shell may have of another job or for Slurm's commands ends here;
# SLURM_CONF stays, and what Slurm says of this job.
unset "${!SBATCH_@}" "${!SRUN_@}" "${!SALLOC_@}" "${!PMI@}" "${!OMPI_@}" "${!PRTE_@}" "${!TORCHELASTIC_@}"
unset SLURM_CPU_BIND SLURM_CPU_BIND_LIST SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_VERBOSE \
    SLURM_CPU_FREQ_REQ SLURM_CPUS_PER_GPU SLURM_DEPENDENCY SLURM_DISTRIBUTION SLURM_EXCLUSIVE \
    SLURM_EXPORT_ENV SLURM_GPU_BIND SLURM_GPU_FREQ SLURM_GRES_FLAGS SLURM_HINT SLURM_MEM_BIND \
    SLURM_MEM_BIND_LIST SLURM_MEM_BIND_PREFER SLURM_MEM_BIND_SORT SLURM_MEM_BIND_TYPE \
    SLURM_MEM_BIND_VERBOSE SLURM_NTASKS_PER_CORE SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_SOCKET \
    SLURM_NTASKS_PER_TRES SLURM_OVERCOMMIT SLURM_PROFILE SLURM_STEP_GRES SLURM_STEPID \
    SLURM_STEP_ID SLURM_STEP_LAUNCHER_PORT SLURM_STEP_NODELIST SLURM_STEP_NUM_NODES \
    SLURM_STEP_NUM_TASKS SLURM_STEP_TASKS_PER_NODE SLURM_SRUN_COMM_HOST SLURM_SRUN_COMM_PORT \
    SLURM_THREADS SLURM_THREADS_PER_CORE SLURM_UMASK SLURM_WAIT SLURM_WHOLE
unset RANK LOCAL_RANK GROUP_RANK ROLE_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE \
    ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT

# shellcheck source=/dev/null
command -v module >/dev/null || { set +u; . /etc/profile; set -u; }
# The environment on a node; a line that fails ends the job.
set -e +u
module load cuda/12.4
# shellcheck source=/dev/null
. /home/me/env/bin/activate
ulimit -n 65536
set +e -u

# ranks of a node share its cores; more threads than cores slow every rank down
export OMP_NUM_THREADS=1
# a failed collective ends its rank instead of hanging the job
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
# keeps the allocator's reserve close to what is used
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# collectives and matrix products start in the order of their submission
export CUDA_DEVICE_MAX_CONNECTIONS=1
# launch.env.NCCL_SOCKET_IFNAME
export NCCL_SOCKET_IFNAME=ib0
# the code that was planned is the code that runs
export PYTHONPATH=/code"${PYTHONPATH:+:$PYTHONPATH}"

# The agent meets the others, starts torchrun here, and ends what must not go on.
exec "$python" -m launcher.node agent "$run_dir" "$number"
