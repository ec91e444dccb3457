"""How long one optimizer step takes: the schedule simulated, then reduction and update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.config.schema import Run
from launcher.plan.memory import (
    build_shape,
    gradients_are_whole,
    optimizer_bytes_per_parameter,
)
from launcher.plan.mesh import Mesh
from launcher.plan.records import Communication, Layout, Stage, Time
from launcher.plan.roofline import PartTimes, estimate_parts
from launcher.plan.schedule_records import Schedule, has_weight_actions
from launcher.plan.simulate import Simulation, StageTimes, simulate
from launcher.plan.stages import count_stage_parameters
from launcher.plan.tensor_traffic import exposed_times
from launcher.plan.traffic import (
    GRADIENT_BYTES,
    find_links,
    list_communication,
    p2p_s,
    sum_of_partial_gradients,
)
from launcher.plan.work import ELEMENT_BYTES, model_flops_per_token


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """One step, predicted, with what it was made from."""

    time: Time
    communication: tuple[Communication, ...]
    simulation: Simulation


def estimate_step(
    run: Run, layout: Layout, stages: Sequence[Stage], schedule: Schedule, mesh: Mesh
) -> StepEstimate:
    """Step time by kind: compute, bubble, exposed communication and optimizer add up to it."""
    assert run.hardware.gpu is not None
    links = find_links(run, layout, mesh)
    communication = list_communication(run, layout, stages, links)
    parts = estimate_parts(
        run.model, build_shape(run, layout), layout.recompute, run.hardware.gpu, run.precision
    )
    pieces = _pieces(schedule, stages)
    splits = has_weight_actions(schedule.ranks)
    compute = [_compute_times(piece, parts, splits) for piece in pieces]
    shape = build_shape(run, layout)
    # Without overlap a stage computes nothing while its input travels.
    held_s = 0.0 if layout.overlap_p2p else p2p_s(run.model, shape, links)
    waits = [
        _add(
            exposed_times(run, layout, shape, piece, splits, links.tp),
            StageTimes(
                forward_s=0.0 if piece.is_first else held_s,
                backward_s=0.0 if piece.is_last else held_s,
            ),
        )
        for piece in pieces
    ]
    both = [_add(one, other) for one, other in zip(compute, waits, strict=True)]
    simulation = simulate(schedule, both, p2p_s(run.model, shape, links) - held_s)
    slowest = max(range(layout.pp), key=lambda stage: simulation.busy_s[stage])
    busy_s = simulation.busy_s[slowest]
    wait_s = layout.num_microbatches * sum(
        times.forward_s + times.backward_s + times.weight_s
        for part, times in enumerate(waits)
        if schedule.chain.home(part)[0] == slowest
    )
    if layout.sequence_parallel:
        wait_s += sum_of_partial_gradients(run, layout, stages, links.tp).seconds_per_step
    exposed_s = wait_s + _exposed_reduction_s(communication, layout, busy_s - wait_s)
    return StepEstimate(
        time=_summarise(
            run,
            layout,
            compute_s=busy_s - wait_s,
            bubble_s=simulation.makespan_s - busy_s,
            bubble_fraction=simulation.bubble_fraction,
            exposed_s=exposed_s,
            optimizer_s=max(_optimizer_s(run, layout, stage) for stage in stages),
        ),
        communication=communication,
        simulation=simulation,
    )


def _add(one: StageTimes, other: StageTimes) -> StageTimes:
    return StageTimes(
        forward_s=one.forward_s + other.forward_s,
        backward_s=one.backward_s + other.backward_s,
        weight_s=one.weight_s + other.weight_s,
    )


def _pieces(schedule: Schedule, stages: Sequence[Stage]) -> list[Stage]:
    """The parts of the model, in its order."""
    homes = [schedule.chain.home(part) for part in range(schedule.chain.num_parts)]
    return [stages[stage].pieces[chunk] for stage, chunk in homes]


def _compute_times(stage: Stage, parts: PartTimes, splits: bool) -> StageTimes:
    """One microbatch on one part of the model, communication aside."""
    num_layers = stage.num_layers
    weight_s = num_layers * parts.block_weight_s + stage.is_last * parts.head_weight_s
    weight_s = weight_s if splits else 0.0
    return StageTimes(
        forward_s=num_layers * parts.block_forward_s
        + stage.is_first * parts.embedding_forward_s
        + stage.is_last * parts.head_forward_s,
        backward_s=num_layers * parts.block_backward_s
        + stage.is_first * parts.embedding_backward_s
        + stage.is_last * parts.head_backward_s
        - weight_s,
        weight_s=weight_s,
    )


def _exposed_reduction_s(
    communication: Sequence[Communication], layout: Layout, compute_s: float
) -> float:
    """What of dp and embedding traffic the step waits for.

    Only what is longer than the computing that runs beside it shows.
    """
    seconds = {"dp": 0.0, "embedding": 0.0}
    for entry in communication:
        if entry.axis in seconds:
            seconds[entry.axis] += entry.seconds_per_step
    beside_s = _overlapped_share(layout) * compute_s
    return max(0.0, seconds["dp"] - beside_s) + seconds["embedding"]


def _overlapped_share(layout: Layout) -> float:
    """Of the computing, what dp traffic runs beside.

    DeepSpeed below ZeRO-3 reduces when the last microbatch is done; ZeRO-3 (`overlap_comm`) gathers
    and reduces throughout. FSDP2 does so too, or, where gradients add up first, gathers beside the
    first microbatch's forward and reduces beside the last one's backward.
    """
    if layout.engine == "fsdp2":
        return 1.0 / layout.num_microbatches if gradients_are_whole(layout) else 1.0
    return 1.0 if layout.zero_stage == 3 else 0.0


def _optimizer_s(run: Run, layout: Layout, stage: Stage) -> float:
    """Bound by memory: state read and written, gradients read for the norm and the update."""
    assert run.hardware.gpu is not None
    num_layers = stage.num_layers
    size = count_stage_parameters(run.model, num_layers, stage.is_first, stage.is_last, layout.tp)
    share = size / layout.dp if layout.zero_stage >= 1 else size
    state = optimizer_bytes_per_parameter(run.optimizer, run.precision.compute, layout.zero_stage)
    per_parameter = 2 * state + 3 * GRADIENT_BYTES + ELEMENT_BYTES[run.precision.compute]
    return share * per_parameter / run.hardware.gpu.memory_bandwidth


def _summarise(
    run: Run,
    layout: Layout,
    *,
    compute_s: float,
    bubble_s: float,
    bubble_fraction: float,
    exposed_s: float,
    optimizer_s: float,
) -> Time:
    assert run.hardware.gpu is not None
    step_s = compute_s + bubble_s + exposed_s + optimizer_s
    tokens_per_s = layout.global_batch_size * layout.sequence_length / step_s
    per_gpu = tokens_per_s / layout.world_size
    flops = per_gpu * model_flops_per_token(run.model, layout.sequence_length)
    return Time(
        step_s=step_s,
        compute_s=compute_s,
        bubble_s=bubble_s,
        bubble_fraction=bubble_fraction,
        exposed_communication_s=exposed_s,
        optimizer_s=optimizer_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=per_gpu,
        tflops_per_gpu=flops / 1e12,
        mfu=flops / getattr(run.hardware.gpu.peak_flops, run.precision.compute),
        gpu_hours=layout.world_size * step_s * run.train.steps / 3600,
    )
