"""What a rank needs whatever it computes: weights, gradients and optimizer state, sharded."""

from __future__ import annotations

from typing import NamedTuple

from launcher.plan.execution import Job
from launcher.plan.memory_fsdp2 import outer_groups
from launcher.plan.memory_pipeline import gradients_of_one_chunk
from launcher.plan.memory_shares import rank_parameters, rank_share
from launcher.plan.records import Stage
from launcher.plan.stages import largest_block
from launcher.plan.traffic import gradients_are_whole

BUCKET_ELEMENTS = 2**25
"""Elements per collective of the data-parallel reduction."""


class Held(NamedTuple):
    """Bytes that a rank needs whatever it computes."""

    parameters: int
    gradients: int
    optimizer: int
    step_buffers: int
    """At the end of a step."""

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer state: there all the time."""
        return self.parameters + self.gradients + self.optimizer


def held_bytes(job: Job, stage: Stage) -> Held:
    """Of one rank of a stage."""
    size = rank_parameters(job, stage)
    share = rank_share(job, stage, size)
    return Held(*_kept_state(job, stage, size, share), step_buffers=_step_buffers(job, size, share))


def _gradients(job: Job, size: int, share: int) -> int:
    """Elements of accumulated gradients that a rank holds."""
    if not gradients_are_whole(job.layout):
        return share
    if not job.execution.torch_pipeline:
        return size
    # Beside them this rank's part of their sums, in memory of the stream that reduces.
    return share + (size // job.layout.vpp if gradients_of_one_chunk(job.layout) else size)


def _kept_state(job: Job, stage: Stage, size: int, share: int) -> tuple[int, int, int]:
    """Weights, gradients and optimizer state on the device, from a rank's part and its share."""
    layout, execution = job.layout, job.execution
    gradients = execution.gradient_bytes * _gradients(job, size, share)
    optimizer = execution.state_bytes * (share if layout.zero_stage >= 1 else size)
    if execution.offload != "none":
        optimizer = 0
        if execution.offloads_gradients:  # those of a block are on their way
            block = largest_block(job.model, layout.tp, layout.ep)
            gradients = min(gradients, block * execution.gradient_bytes)
    return _resident_weights(job, stage, size, share), gradients, optimizer


def _resident_weights(job: Job, stage: Stage, size: int, share: int) -> int:
    """With weights in RAM, a block and what follows it are on the device: one at work, one on its
    way. That is the next block, or the head; the embedding is followed by a block. Under ZeRO-3
    it is this rank's part of them: what is gathered is a buffer.
    """
    layout, execution = job.layout, job.execution
    held = share if layout.zero_stage == 3 else size
    weights = execution.weight_bytes * held
    if execution.offload != "parameters":
        return weights
    block = largest_block(job.model, layout.tp, layout.ep)
    beside = max((block, *outer_groups(job.model, stage, layout.tp)))
    return min(weights, (block + beside) * execution.element_bytes * held // max(1, size))


def _step_buffers(job: Job, size: int, share: int) -> int:
    """Bucket of the reduction, this rank's part of the reduced gradients, gathered weights."""
    layout, execution = job.layout, job.execution
    if (
        layout.dp * layout.cp == 1 and layout.zero_stage == 0
    ) or not execution.reduces_by_all_reduce:
        return 0
    bucket = 4 * min(size, BUCKET_ELEMENTS)
    # Under bf16, ZeRO-1's update reads the whole gradients in place; other kinds copy their part.
    is_in_place = layout.zero_stage == 1 and execution.matmul == "bf16"
    has_copy = layout.zero_stage in (1, 2) and gradients_are_whole(layout) and not is_in_place
    return bucket + (4 * share if has_copy else 0)
