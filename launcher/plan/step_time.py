"""How long one optimizer step takes: the schedule simulated, then reduction and update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.config.schema import Run
from launcher.plan.collectives import Links, boundary_s, exposed_s
from launcher.plan.costs import sum_sizes, tied_copy
from launcher.plan.execution import Job, runtime_job
from launcher.plan.kernels import peak_flops, traffic_s
from launcher.plan.links import Link, make_link, stride_link, transfer_s
from launcher.plan.mesh import Mesh
from launcher.plan.records import Communication, Layout, Stage, Time
from launcher.plan.schedule_records import Chain, Schedule, StageTimes, has_weight_actions
from launcher.plan.simulate import Simulation, simulate
from launcher.plan.stage_time import Parts, StageCost, end_costs, estimate_parts, stage_cost
from launcher.plan.traffic import embedding_link, list_communication
from launcher.plan.work import model_flops_per_token


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
    return estimate_job(runtime_job(run, layout), stages, schedule)


def estimate_job(job: Job, stages: Sequence[Stage], schedule: Schedule) -> StepEstimate:
    """The same for a job of any program."""
    links = find_links(job)
    parts = estimate_parts(job, links)
    costs = tuple(stage_cost(job, stage, parts, links) for stage in stages)
    splits = has_weight_actions(schedule.ranks)
    times = time_parts(job, costs, parts, schedule.chain, splits, links)
    simulation = simulate(schedule, times, free_p2p_s(job, links))
    return StepEstimate(
        time=summarise(job, simulation, costs, links),
        communication=list_communication(job, stages, links),
        simulation=simulation,
    )


def free_p2p_s(job: Job, links: Links) -> float:
    """Transfers that leave both stages free to compute."""
    return boundary_s(job, links) if job.execution.overlap_p2p else 0.0


def time_parts(
    job: Job,
    costs: Sequence[StageCost],
    parts: Parts,
    chain: Chain,
    splits: bool,
    links: Links,
) -> list[StageTimes]:
    """Every part of the model: a stage's blocks in equal chunks, the ends where they are."""
    # A blocking exchange keeps both stages from computing.
    held_s = boundary_s(job, links) - free_p2p_s(job, links)
    times = []
    for part in range(chain.num_parts):
        cost = costs[chain.home(part)[0]]
        ends = end_costs(parts, part == 0, part == chain.num_parts - 1)
        forward = cost.forward_s / chain.num_chunks + ends.forward_s + held_s
        backward = cost.input_s / chain.num_chunks + ends.input_s + held_s
        weight = cost.weight_s / chain.num_chunks + ends.weight_s
        times.append(
            StageTimes(
                forward_s=forward,
                backward_s=backward if splits else backward + weight,
                weight_s=weight if splits else 0.0,
            )
        )
    return times


def find_links(job: Job) -> Links:
    """Where each axis' groups sit on the nodes; ep is borrowed from dp x cp, nearest first."""
    layout = job.layout
    sizes = {"tp": layout.tp, "cp": layout.cp, "dp": layout.dp, "pp": layout.pp}
    strides, stride = {}, 1
    for axis in layout.order:
        if axis in sizes:
            strides[axis] = stride
            stride *= sizes[axis]

    def link(stride: int, size: int) -> Link:
        return stride_link(job.hardware, layout.gpus_per_node, stride, size)

    replicas = layout.dp * layout.cp
    shard = min(job.execution.shard_size or replicas, replicas)
    inner = min(strides["cp"], strides["dp"]) if layout.cp > 1 else strides["dp"]
    crosses = layout.pp > 1 and strides["pp"] * layout.pp > layout.gpus_per_node
    return Links(
        tp=link(strides["tp"], layout.tp),
        cp=link(strides["cp"], layout.cp),
        ep=link(inner, layout.ep),
        pp=make_link(job.hardware, layout.pp, layout.pp if crosses else 1, shares_adapters=False),
        shard=link(inner, shard),
        replica=link(inner * shard, replicas // shard),
        dp=link(inner, replicas),
    )


def summarise(job: Job, simulation: Simulation, costs: Sequence[StageCost], links: Links) -> Time:
    """The step's parts add up to its time."""
    layout, gpu = job.layout, job.hardware.gpu
    assert gpu is not None
    slowest = max(range(len(costs)), key=lambda stage: simulation.busy_s[stage])
    busy_s, count = simulation.busy_s[slowest], layout.num_microbatches
    wait_s = count * costs[slowest].wait_s
    tail_s = max(_tail_s(job, cost) for cost in costs) + _embedding_s(job, links)
    optimizer_s = max(_optimizer_s(job, cost) for cost in costs) + gpu.step_overhead_s
    exposed = wait_s + tail_s
    step_s = simulation.makespan_s + tail_s + optimizer_s
    tokens_per_s = layout.global_batch_size * layout.sequence_length / step_s
    per_gpu = tokens_per_s / layout.world_size
    flops = per_gpu * model_flops_per_token(job.model, layout.sequence_length)
    return Time(
        step_s=step_s,
        compute_s=busy_s - wait_s,
        bubble_s=simulation.makespan_s - busy_s,
        bubble_fraction=simulation.bubble_fraction,
        exposed_communication_s=exposed,
        optimizer_s=optimizer_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=per_gpu,
        tflops_per_gpu=flops / 1e12,
        mfu=flops / peak_flops(gpu, job.execution.matmul),
        gpu_hours=layout.world_size * step_s * job.train_steps / 3600,
    )


def _tail_s(job: Job, cost: StageCost) -> float:
    """Reduction and gather that stick out of the last backward and the first forward."""
    reduce_s, gather_s = cost.tail.reduce_s, cost.tail.gather_s
    if not job.execution.overlap_dp:
        return reduce_s + gather_s
    backward_s = cost.input_s + cost.weight_s
    return exposed_s(reduce_s, backward_s) + exposed_s(gather_s, cost.forward_s)


def _embedding_s(job: Job, links: Links) -> float:
    if job.layout.pp == 1 or not job.model.tie_embeddings:
        return 0.0
    payload = job.execution.reduce_bytes * sum_sizes(tied_copy(job.model), job.layout.tp)
    return transfer_s("all_reduce", payload, embedding_link(links))


UNFUSED_UPDATE = 2.5
"""An update in a kernel per operation reads and writes state that often."""


def _optimizer_s(job: Job, cost: StageCost) -> float:
    """Bound by memory: state read and written, gradients read for the norm and the update."""
    layout, execution, gpu = job.layout, job.execution, job.hardware.gpu
    assert gpu is not None
    replicas = layout.dp * layout.cp
    shards = min(execution.shard_size or replicas, replicas) if layout.zero_stage else 1
    owned = (cost.parameters - cost.expert_parameters) / shards
    owned += cost.expert_parameters / max(1, shards // layout.ep)
    times = 1.0 if execution.fused_optimizer else UNFUSED_UPDATE
    per_parameter = 2 * execution.state_bytes * times
    per_parameter += 3 * execution.gradient_bytes + execution.element_bytes
    return traffic_s(owned * per_parameter, gpu)
