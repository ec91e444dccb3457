"""Whether it fits: the peak memory of one rank of every stage, by kind.

Figures follow what the runtime keeps (`runtime/engine*.py`): weights in the compute type,
gradients added up in float32, optimizer state and master weights in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.config.schema import Gpu, Optimizer, Run
from launcher.plan.memory_fsdp2 import group_buffers_bytes
from launcher.plan.records import Layout, Memory, Stage, StageMemory
from launcher.plan.stages import count_stage_parameters
from launcher.plan.work import (
    ELEMENT_BYTES,
    Shape,
    backward_temporary_bytes,
    block_activation_bytes,
    boundary_bytes,
    embedding_activation_bytes,
    head_activation_bytes,
    logit_temporary_bytes,
)

USABLE_SHARE = 0.94
"""Of a device's memory. The rest is for what no formula sees: libraries' workspaces, communicators
that appear late, and the estimate's own error (Megatron-LM's formula is 4.4 % low on average)."""

ALLOCATOR_SHARE = 0.05
"""Of activations and buffers, which come and go: torch's allocator rounds and splits its blocks."""

BUCKET_ELEMENTS = 2**25
"""Elements per collective of the data-parallel reduction."""

HOST_BYTES_PER_PROCESS = 3 * 2**30
"""Resident memory of a worker process: torch, CUDA's libraries and pinned buffers, rounded up."""


def estimate_memory(
    run: Run, layout: Layout, stages: Sequence[Stage], peak_in_flight: Sequence[int]
) -> Memory:
    """Peak memory per stage; `peak_in_flight` comes from the schedule that will run.

    It counts microbatches times chunks. What W needs after B is counted whole until then.
    """
    assert run.hardware.gpu is not None
    per_stage = tuple(
        _stage_memory(run, layout, stage, in_flight, run.hardware.gpu)
        for stage, in_flight in zip(stages, peak_in_flight, strict=True)
    )
    peak = max(stage.total_bytes for stage in per_stage)
    capacity = run.hardware.gpu.memory_bytes
    usable = int(USABLE_SHARE * capacity)
    host = layout.gpus_per_node * (peak if run.hardware.device == "cpu" else HOST_BYTES_PER_PROCESS)
    return Memory(
        per_stage=per_stage,
        peak_bytes=peak,
        capacity_bytes=capacity,
        usable_bytes=usable,
        fits=peak <= usable,
        host_bytes_per_node=host,
    )


def zero_model_state_bytes(num_parameters: float, zero_stage: int, dp: int) -> float:
    """Model states per device in ZeRO's own convention: 2 + 2 + 12 bytes per parameter.

    Figure 1 of arXiv:1910.02054: 7.5e9 parameters on 64 devices take 120, 31.4, 16.6 and 1.9 GB.
    """
    weights, gradients, optimizer = 2.0, 2.0, 12.0
    if zero_stage >= 1:
        optimizer /= dp
    if zero_stage >= 2:
        gradients /= dp
    if zero_stage >= 3:
        weights /= dp
    return (weights + gradients + optimizer) * num_parameters


def gradients_are_whole(layout: Layout) -> bool:
    """Whether a rank keeps all gradients of its stage until the end of the step.

    ZeRO-2 shards them as they come, but not inside a pipeline: there microbatches add up first,
    because a reduction for each of them would multiply the traffic (and tied embeddings need the
    sum over both stages). FSDP2 reduces whatever the last backward leaves while that one runs.
    """
    if layout.engine == "fsdp2" and layout.num_microbatches * layout.vpp == 1:
        return False
    return layout.zero_stage < 2 or (layout.zero_stage == 2 and layout.pp > 1)


def optimizer_bytes_per_parameter(optimizer: Optimizer, compute: str, zero_stage: int) -> int:
    """Float32 state, and the master copy: needed under bf16, and always made by DeepSpeed."""
    state = 8 if optimizer.name == "adamw" else (4 if optimizer.momentum else 0)
    return state + (4 if compute == "bf16" or zero_stage > 0 else 0)


def build_shape(run: Run, layout: Layout) -> Shape:
    """The size of one microbatch's work on one rank."""
    return Shape(
        micro_batch_size=layout.micro_batch_size,
        sequence_length=layout.sequence_length,
        tp=layout.tp,
        sequence_parallel=layout.sequence_parallel,
        element_bytes=ELEMENT_BYTES[run.precision.compute],
    )


def _stage_memory(run: Run, layout: Layout, stage: Stage, in_flight: int, gpu: Gpu) -> StageMemory:
    num_layers = stage.num_layers
    size = count_stage_parameters(run.model, num_layers, stage.is_first, stage.is_last, layout.tp)
    share = -(-size // layout.dp)
    element_bytes = ELEMENT_BYTES[run.precision.compute]
    state_bytes = optimizer_bytes_per_parameter(
        run.optimizer, run.precision.compute, layout.zero_stage
    )
    weight_bytes = element_bytes * (share if layout.zero_stage == 3 else size)
    if layout.engine == "fsdp2" and layout.zero_stage == 3:
        # The masters are all there is: weights in the compute type exist only while gathered.
        weight_bytes, state_bytes = 4 * share, state_bytes - 4
    activations = -(-in_flight * _kept_bytes(run, layout, stage) // layout.vpp)
    # The reduction's buckets come when the activations are gone: only what is beyond them counts.
    buffers = max(
        _pass_buffers(run, layout, stage), _step_buffers(run, layout, size, share) - activations
    )
    return StageMemory(
        stage=stage.stage,
        parameters_bytes=weight_bytes,
        gradients_bytes=4 * (size if gradients_are_whole(layout) else share),
        optimizer_bytes=state_bytes * (share if layout.zero_stage >= 1 else size),
        activations_bytes=activations,
        buffers_bytes=buffers,
        overhead_bytes=gpu.context_bytes + int(ALLOCATOR_SHARE * (activations + buffers)),
    )


def _kept_bytes(run: Run, layout: Layout, stage: Stage) -> int:
    """What the stage keeps of one microbatch between its forward and its backward."""
    shape = build_shape(run, layout)
    num_layers = stage.num_layers
    kept = num_layers * block_activation_bytes(run.model, shape, layout.recompute)
    if stage.is_first:
        kept += embedding_activation_bytes(run.model, shape)
    if stage.is_last:
        kept += head_activation_bytes(run.model, shape)
    return kept


def _pass_buffers(run: Run, layout: Layout, stage: Stage) -> int:
    """Temporaries of forward and backward, and what is under way between stages."""
    shape = build_shape(run, layout)
    working = backward_temporary_bytes(run.model, shape, layout.recompute)
    logits = logit_temporary_bytes(run.model, shape) if stage.is_last else 0
    if layout.engine == "fsdp2":
        working = group_buffers_bytes(
            run.model, layout, stage, shape.element_bytes, working, logits
        )
    working = max(working, logits)
    # One activation and one gradient, posted early or not yet sent, per neighbour.
    neighbours = (not stage.is_first) + (not stage.is_last)
    buffers = working + 2 * neighbours * boundary_bytes(run.model, shape)
    if layout.zero_stage == 3 and layout.engine == "deepspeed":
        # The block at hand and the next one are gathered; the first has whole gradients too.
        block = count_stage_parameters(run.model, 1, False, False, layout.tp)
        buffers += block * (2 * shape.element_bytes + 4)
    return buffers


def _step_buffers(run: Run, layout: Layout, size: int, share: int) -> int:
    """Bucket of the reduction, this rank's part of the reduced gradients, gathered weights."""
    if layout.engine == "fsdp2" or (layout.dp == 1 and layout.zero_stage == 0):
        return 0
    bucket = 4 * min(size, BUCKET_ELEMENTS)
    # Under bf16, ZeRO-1's update reads the whole gradients in place; other kinds copy their part.
    is_in_place = layout.zero_stage == 1 and run.precision.compute == "bf16"
    has_copy = layout.zero_stage in (1, 2) and gradients_are_whole(layout) and not is_in_place
    return bucket + (4 * share if has_copy else 0)
