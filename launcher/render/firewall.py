"""What a job must not inherit from the shell that submitted it, and how a script sheds it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

# Settings of sbatch and srun, and what other launchers tell their own processes.
FOREIGN_PREFIXES = ("SBATCH_", "SRUN_", "SALLOC_", "PMI", "OMPI_", "PRTE_", "TORCHELASTIC_")
# Variables by which srun takes options: of another job, where Slurm does not set them for this one.
FOREIGN_SRUN = (
    "SLURM_CPU_BIND", "SLURM_CPU_BIND_LIST", "SLURM_CPU_BIND_TYPE", "SLURM_CPU_BIND_VERBOSE",
    "SLURM_CPU_FREQ_REQ", "SLURM_CPUS_PER_GPU", "SLURM_DEPENDENCY", "SLURM_DISTRIBUTION",
    "SLURM_EXCLUSIVE", "SLURM_EXPORT_ENV", "SLURM_GPU_BIND", "SLURM_GPU_FREQ", "SLURM_GRES_FLAGS",
    "SLURM_HINT", "SLURM_MEM_BIND", "SLURM_MEM_BIND_LIST", "SLURM_MEM_BIND_PREFER",
    "SLURM_MEM_BIND_SORT", "SLURM_MEM_BIND_TYPE", "SLURM_MEM_BIND_VERBOSE", "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_GPU", "SLURM_NTASKS_PER_SOCKET", "SLURM_NTASKS_PER_TRES", "SLURM_OVERCOMMIT",
    "SLURM_PROFILE", "SLURM_STEP_GRES", "SLURM_STEPID", "SLURM_STEP_ID", "SLURM_STEP_LAUNCHER_PORT",
    "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_TASKS_PER_NODE", "SLURM_SRUN_COMM_HOST", "SLURM_SRUN_COMM_PORT", "SLURM_THREADS",
    "SLURM_THREADS_PER_CORE", "SLURM_UMASK", "SLURM_WAIT", "SLURM_WHOLE",
)  # fmt: skip
# What torchrun tells its workers: a worker's own child must not take them for its own.
FOREIGN_RANK = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
# Devices of another job on another node.
_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
            "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL")  # fmt: skip
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER")
"""How Slurm's commands find the cluster."""


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with which Slurm's commands are called: nothing of another job is in it."""
    foreign = ("SLURM_", "SLURMD_", *FOREIGN_PREFIXES)
    named = (*FOREIGN_RANK, *_DEVICES)
    return {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not (name.startswith(foreign) or name in named)
    }


def render_firewall(sharded: bool) -> str:
    """The lines of a script that unset what a submitting shell had of another job.

    Args:
        sharded: whether FSDP2 overlaps collectives on streams of its own.

    """
    prefixes = " ".join(f'"${{!{prefix}@}}"' for prefix in FOREIGN_PREFIXES)
    lines = [
        "# What the submitting shell may have of another job or for Slurm's commands ends here;",
        "# SLURM_CONF stays, and what Slurm says of this job.",
        f"unset {prefixes}",
        *_wrapped("unset", FOREIGN_SRUN),
        *_wrapped("unset", FOREIGN_RANK),
    ]
    if sharded:
        lines += [
            "# FSDP2 gathers on a stream of its own, which one connection would hold up.",
            "unset CUDA_DEVICE_MAX_CONNECTIONS",
        ]
    return "\n".join(lines)


def _wrapped(command: str, names: tuple[str, ...]) -> list[str]:
    text = textwrap.wrap(" ".join(names), 90, break_on_hyphens=False)
    return [f"{command} {text[0]}" + (" \\" if len(text) > 1 else "")] + [
        f"    {line}" + (" \\" if number < len(text) - 1 else "")
        for number, line in enumerate(text[1:], start=1)
    ]
