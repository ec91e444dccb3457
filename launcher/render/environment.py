"""Environment variables of the workers, each with the reason why it is set."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.records import Plan


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable."""

    name: str
    value: str
    why: str


def worker_environment(plan: Plan, cores: int) -> tuple[Variable, ...]:
    """Variables that the plan's workers need on a node with so many cores."""
    run = plan.run
    threads = run.launch.threads_per_rank or max(1, cores // plan.layout.gpus_per_node)
    variables = [
        Variable(
            name="OMP_NUM_THREADS",
            value=str(threads),
            why="ranks of a node share its cores; more threads than cores slow every rank down",
        )
    ]
    if run.hardware.device == "cuda":
        variables += _cuda_variables(plan)
    else:
        variables.append(
            Variable(
                name="DS_ACCELERATOR", value="cpu", why="DeepSpeed must not look for a GPU here"
            )
        )
        if run.hardware.num_nodes == 1:
            variables.append(
                Variable(
                    name="GLOO_SOCKET_IFNAME",
                    value="lo",
                    why="all ranks are on this machine, whatever its network name resolves to",
                )
            )
    given = run.launch.env
    variables = [variable for variable in variables if variable.name not in given]
    variables += [
        Variable(name=name, value=value, why=f"launch.env.{name}") for name, value in given.items()
    ]
    return tuple(variables)


def _cuda_variables(plan: Plan) -> list[Variable]:
    variables = [
        Variable(
            name="TORCH_NCCL_ASYNC_ERROR_HANDLING",
            value="1",
            why="a failed collective ends its rank instead of hanging the job",
        ),
        Variable(
            name="PYTORCH_CUDA_ALLOC_CONF",
            value="expandable_segments:True",
            why="keeps the allocator's reserve close to what is used",
        ),
    ]
    # FSDP2 gathers weights on a stream of its own, which one connection would hold up.
    if plan.layout.tp > 1 and plan.layout.engine != "fsdp2":
        variables.append(
            Variable(
                name="CUDA_DEVICE_MAX_CONNECTIONS",
                value="1",
                why="collectives and matrix products start in the order of their submission",
            )
        )
    return variables
