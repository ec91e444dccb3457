"""Whether it fits: the peak memory of one rank of every stage, by kind."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.config.schema import Gpu, Run
from launcher.plan.activations import (
    block_kept_bytes,
    dense_difference_bytes,
    embedding_kept_bytes,
    head_kept_bytes,
)
from launcher.plan.context_traffic import sees_whole_sequences
from launcher.plan.costs import embedding_parameters, sum_sizes
from launcher.plan.encoder import encoder_job, memory_bytes
from launcher.plan.execution import Job, runtime_job, shards_of
from launcher.plan.memory_fsdp2 import group_buffers_bytes
from launcher.plan.memory_held import Held, held_bytes
from launcher.plan.memory_pipeline import transfer_bytes
from launcher.plan.memory_shares import (
    offloaded_bytes,
    snapshot_bytes,
)
from launcher.plan.rank_groups import most_of_a_node
from launcher.plan.records import Layout, Memory, Stage, StageMemory
from launcher.plan.stages import count_stage_parameters, dense_layers_of, largest_block
from launcher.plan.temporaries import (
    backward_temporary_bytes,
    block_leftover_bytes,
    head_backward_bytes,
    logit_temporary_bytes,
    unused_gradients_bytes,
)

USABLE_SHARE = 0.94
"""Of a device's memory. The rest is for what no formula sees: libraries' workspaces, communicators
that appear late, and the estimate's own error (Megatron-LM's formula is 4.4 % low on average)."""

ERROR_SHARE = 0.105
"""The error bar: it covers every measured run of docs/backtest.md, of which one was as far off. Of
those with every layout field published memory was at most 2 % above the prediction."""

ALLOCATOR_SHARE = 0.14
"""Of activations and buffers, which come and go: what torch's allocator keeps in pieces too small
for the next tensor. Median of SimuMax's ten pairs of reserved and allocated memory, the
embedding's gradient aside."""

PRESSED_SHARE = 0.07
"""The same where the device is full: before it fails, torch's allocator returns segments that
nothing uses; pieces of the others stay. Assumed: half."""

EXPANDABLE_SHARE = 0.02
"""The same with expandable segments, whose pieces grow together; rounding remains."""

HEAP_SHARE = 0.05
"""The same of a CPU's heap."""

HOST_BYTES_PER_PROCESS = 3 * 2**30
"""Resident memory of a worker process: torch, CUDA's libraries and pinned buffers, rounded up."""


def estimate_memory(
    run: Run, layout: Layout, stages: Sequence[Stage], peak_in_flight: Sequence[int]
) -> Memory:
    """Peak memory per stage; `peak_in_flight` comes from the schedule that will run.

    It counts microbatches times chunks. What W needs after B is counted whole until then.
    """
    return estimate_job_memory(runtime_job(run, layout), stages, peak_in_flight)


def estimate_job_memory(job: Job, stages: Sequence[Stage], peak_in_flight: Sequence[int]) -> Memory:
    """The same for a job of any program."""
    hardware = job.hardware
    assert hardware.gpu is not None
    per_stage = tuple(
        stage_memory(job, stage, in_flight, hardware.gpu)
        for stage, in_flight in zip(stages, peak_in_flight, strict=True)
    )
    peak = max(stage.total_bytes for stage in per_stage)
    capacity = hardware.gpu.memory_bytes
    usable = usable_bytes(hardware.gpu)
    host = [stage.total_bytes for stage in per_stage]
    if hardware.device != "cpu":  # on one the copy of a checkpoint is in it already
        host = [HOST_BYTES_PER_PROCESS + snapshot_bytes(job, stage) for stage in stages]
    host = [each + offloaded_bytes(job, stage) for each, stage in zip(host, stages, strict=True)]
    return Memory(
        per_stage=per_stage,
        peak_bytes=peak,
        capacity_bytes=capacity,
        usable_bytes=usable,
        fits=peak <= usable,
        host_bytes_per_node=most_of_a_node(job.layout, host),
        error_bytes=int(ERROR_SHARE * peak),
    )


def usable_bytes(gpu: Gpu) -> int:
    """What of a device's memory a plan allows itself."""
    return int(USABLE_SHARE * gpu.memory_bytes)


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


def stage_memory(job: Job, stage: Stage, in_flight: int, gpu: Gpu) -> StageMemory:
    """Of one rank that keeps so many microbatches (or chunks of them)."""
    held = held_bytes(job, stage)
    activations = in_flight_bytes(job, stage, in_flight)
    passing = pass_buffers(job, stage) + transfer_bytes(job, stage, in_flight)
    buffers, overhead = _around(job, stage, held, activations, passing, gpu)
    return StageMemory(
        stage=stage.stage,
        parameters_bytes=held.parameters,
        gradients_bytes=held.gradients,
        optimizer_bytes=held.optimizer,
        activations_bytes=activations,
        buffers_bytes=buffers,
        overhead_bytes=overhead,
    )


def rank_bytes(job: Job, stage: Stage, held: Held, activations: int, passing: int, gpu: Gpu) -> int:
    """`stage_memory(...).total_bytes` from its parts, for who has them already."""
    return held.state + activations + sum(_around(job, stage, held, activations, passing, gpu))


def _around(
    job: Job, stage: Stage, held: Held, activations: int, passing: int, gpu: Gpu
) -> tuple[int, int]:
    """Buffers, and what the allocator and the process keep."""
    # The reduction's buckets come when the activations are gone: only what is beyond them counts.
    buffers = max(passing, held.step_buffers - activations)
    execution = job.execution
    reserve = _reserve_bytes(job, stage, activations + buffers) if execution.reserved else 0
    context = gpu.context_bytes if execution.process else 0
    if job.hardware.device == "cpu":
        context += snapshot_bytes(job, stage)
    return buffers, context + reserve


def _reserve_bytes(job: Job, stage: Stage, alive: int) -> int:
    """What the allocator keeps beside tensors."""
    if job.hardware.device == "cpu":
        return int(HEAP_SHARE * alive)
    if job.execution.expandable_segments:
        return int(EXPANDABLE_SHARE * alive)
    if job.execution.under_pressure:
        return int(PRESSED_SHARE * alive)
    # The embedding's dense gradient comes last, when only pieces are free.
    has_table = stage.is_first and job.layout.zero_stage < 3
    table = sum_sizes(embedding_parameters(job.model), job.layout.tp) if has_table else 0
    return int(ALLOCATOR_SHARE * alive) + table * job.execution.element_bytes


def in_flight_bytes(job: Job, stage: Stage, in_flight: int) -> int:
    """What the stage keeps of the microbatches (of their chunks, where stages are interleaved)."""
    execution, layout = job.execution, job.layout
    blocks = _blocks_bytes(job, stage.num_layers)
    if dense := dense_layers_of(job.model, stage):
        modes = {job.execution.recompute, *(("none",) if job.execution.recompute_share < 1 else ())}
        blocks += dense * max([dense_difference_bytes(job, mode) for mode in modes])
    vpp = layout.vpp
    kept = -(-in_flight * blocks // vpp)
    if execution.document_masks and sees_whole_sequences(job):  # one for all blocks of a pass
        pairs = layout.micro_batch_size * layout.sequence_length**2
        kept += in_flight * pairs * execution.element_bytes
    passes = -(-in_flight // vpp)
    if stage.is_first:
        kept += passes * embedding_kept_bytes(job)
    if job.model.encoder:
        kept += passes * memory_bytes(job)
    if job.model.encoder and stage.is_first:
        side = encoder_job(job)
        kept += passes * _blocks_bytes(side, side.model.num_layers)
    if stage.is_last:
        kept += (passes if vpp == 1 else 1) * head_kept_bytes(job)
    return kept


def _blocks_bytes(job: Job, num_layers: int) -> int:
    """Of so many blocks, with those that recompute among them."""
    again = round(num_layers * job.execution.recompute_share)
    blocks = again * block_kept_bytes(job, job.execution.recompute)
    if again < num_layers:
        blocks += (num_layers - again) * block_kept_bytes(job, "none")
    return blocks


def pass_buffers(job: Job, stage: Stage) -> int:
    """Temporaries of forward and backward: in a block, or in the loss and the head."""
    layout, execution = job.layout, job.execution
    working = backward_temporary_bytes(job)
    if job.model.encoder and stage.is_first:
        working = max(working, backward_temporary_bytes(encoder_job(job)))
    ends = count_stage_parameters(job.model, 0, stage.is_first, stage.is_last, layout.tp)
    logits = logit_temporary_bytes(job) if stage.is_last else 0
    if layout.engine == "fsdp2":
        working = group_buffers_bytes(
            job.model,
            layout,
            stage,
            execution.element_bytes,
            working,
            logits,
            shards_of(job),
        )
    elif stage.is_last and layout.zero_stage < 3:
        logits = max(logits, head_backward_bytes(job))
    if stage.is_last and execution.reserved and execution.expandable_segments:
        logits += block_leftover_bytes(job)
    buffers = max(working, logits) + unused_gradients_bytes(job)
    if execution.window_masks and sees_whole_sequences(job):  # one for all blocks of a stage
        buffers += layout.sequence_length**2 * execution.element_bytes
    block = largest_block(job.model, layout.tp, layout.ep)
    if execution.torch_pipeline:  # a gather's own buffers, of the block at hand and the next one
        buffers += 2 * block * execution.gather_bytes
    if layout.zero_stage == 3 and layout.engine == "deepspeed":
        # The block at hand and the next one are gathered; the first has whole gradients too.
        buffers += block * (2 * execution.gather_bytes + execution.reduce_bytes)
        # Embedding and head are gathered from the first use of the one to the last of the other.
        buffers += ends * execution.gather_bytes
    return buffers
