"""What of a stage one rank holds, and what of that waits in the node's RAM."""

from __future__ import annotations

from launcher.plan.execution import Job, expert_shards_of, shards_of
from launcher.plan.records import Stage
from launcher.plan.stages import count_expert_parameters, count_stage_parameters, dense_layers_of


def snapshot_bytes(job: Job, stage: Stage) -> int:
    """The copy of its part of a checkpoint, which a rank of the stage keeps from save to save."""
    size = rank_parameters(job, stage)
    return job.execution.snapshot_bytes * rank_share(job, stage, size)


def offloaded_bytes(job: Job, stage: Stage) -> int:
    """What one rank of a stage keeps in the node's RAM, with the gradients that the CPU reads."""
    layout, execution = job.layout, job.execution
    if execution.offload == "none":
        return 0
    size = rank_parameters(job, stage)
    owned = rank_share(job, stage, size) if layout.zero_stage >= 1 else size
    state = (execution.state_bytes + execution.gradient_bytes) * owned
    if execution.offload == "optimizer":
        return state
    return state + execution.weight_bytes * (owned if layout.zero_stage == 3 else size)


def rank_parameters(job: Job, stage: Stage) -> int:
    """Of a stage, on one tp rank, with its part of the experts."""
    layout = job.layout
    return count_stage_parameters(
        job.model, stage.num_layers, stage.is_first, stage.is_last, layout.tp, layout.ep,
        dense_layers_of(job.model, stage),
    )  # fmt: skip


def rank_share(job: Job, stage: Stage, size: int) -> int:
    """A rank's part of sharded state; experts have fewer replicas to share it with."""
    layout = job.layout
    dense = dense_layers_of(job.model, stage)
    experts = count_expert_parameters(job.model, stage.num_layers, dense, layout.tp, layout.ep)
    return -(-(size - experts) // shards_of(job)) + -(-experts // expert_shards_of(job))
