"""How long one optimizer step takes: the schedule simulated, then reduction and update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from launcher.config.schema import Hardware
from launcher.frozen import frozen
from launcher.plan.collectives import Links, boundary_s, exposed_s
from launcher.plan.execution import Job, expert_shards_of, shards_of
from launcher.plan.kernels import peak_flops, traffic_s
from launcher.plan.links import Link, group_link, make_link, transfer_s
from launcher.plan.rank_groups import Digits, digits_of, expert_digits, split_digits
from launcher.plan.records import Communication, Stage, Time
from launcher.plan.schedule import SCHEDULES
from launcher.plan.schedule_clock import Durations
from launcher.plan.schedule_records import Chain, Schedule, StageTimes, has_weight_actions
from launcher.plan.shared_cores import quickening, shorten_passes, takes_turns
from launcher.plan.simulate import Simulation, simulate
from launcher.plan.simulate_named import named_orders, simulate_named
from launcher.plan.speeds import stage_speeds
from launcher.plan.stage_state import StageState, stage_state
from launcher.plan.stage_time import (
    PartCost,
    estimate_parts,
    part_cost,
)
from launcher.plan.stages import count_dense_layers
from launcher.plan.traffic import (
    embedding_bytes,
    embedding_link,
    gradients_are_whole,
    list_communication,
    sum_of_partial_gradients,
)
from launcher.plan.work import model_flops_per_token


@frozen
class StepEstimate:
    """One step, predicted, with what it was made from."""

    time: Time
    communication: tuple[Communication, ...]
    simulation: Simulation


def estimate_job(
    job: Job, stages: Sequence[Stage], chain: Chain, schedule: Schedule | None = None
) -> StepEstimate:
    """Step time by kind: compute, bubble, exposed communication and optimizer add up to it.

    `schedule`: one of a file, or made for this job; None: the layout's, which has a name.
    """
    links = find_links(job)
    costs = cost_parts(job, stages, chain, links)
    p2p_s = free_p2p_s(job, links)
    name, count = job.layout.schedule, job.layout.num_microbatches
    splits = has_weight_actions(schedule.ranks) if schedule else SCHEDULES[name].splits_backward
    durations = Durations(times=part_times(job, costs, splits, links), p2p_s=p2p_s)
    if schedule is None:
        simulation = simulate_named(name, chain, count, durations.times, p2p_s)
    else:
        simulation = simulate(schedule, durations.times, p2p_s)
    quicker = _quickening(job, chain, schedule, durations)
    simulation = simulation.quicker(quicker)
    return StepEstimate(
        time=summarise(job, stages, simulation, chain, costs, links, quicker),
        communication=shorten_passes(list_communication(job, stages, links), job.layout, quicker),
        simulation=simulation,
    )


def _quickening(job: Job, chain: Chain, schedule: Schedule | None, durations: Durations) -> float:
    """By how much processes that take turns are quicker while others wait; 1 on GPUs."""
    if not takes_turns(job.hardware, chain):
        return 1.0
    count = job.layout.num_microbatches
    if schedule is not None:
        return quickening(job.hardware, chain, count, schedule.ranks, durations)
    orders = named_orders(job.layout.schedule, chain, count)
    return quickening(job.hardware, chain, count, orders, durations, has_transfers=False)


def cost_parts(
    job: Job, stages: Sequence[Stage], chain: Chain, links: Links
) -> tuple[PartCost, ...]:
    """What every part of the model costs, in the model's order."""
    parts = estimate_parts(job, links)
    homes = (chain.home(part) for part in range(chain.num_parts))
    pieces = [stages[stage].pieces[chunk] for stage, chunk in homes]
    costs = {
        key: part_cost(job, piece, parts, links)
        for key, piece in {_kind(job, piece): piece for piece in pieces}.items()
    }
    speeds = stage_speeds(job.hardware, job.layout)
    return tuple(
        costs[_kind(job, piece)].at_speed(speeds[chain.home(part)[0]])
        for part, piece in enumerate(pieces)
    )


def _kind(job: Job, piece: Stage) -> tuple[int, int, bool, bool]:
    """Parts of one kind cost the same: a model has many parts and few kinds."""
    dense = count_dense_layers(job.model, piece.first_layer, piece.end_layer)
    return piece.num_layers, dense, piece.is_first, piece.is_last


def free_p2p_s(job: Job, links: Links) -> float:
    """Transfers that leave both stages free to compute."""
    return boundary_s(job, links) if job.execution.overlap_p2p else 0.0


def part_times(job: Job, costs: Sequence[PartCost], splits: bool, links: Links) -> list[StageTimes]:
    """The actions of every part, as the schedule's simulation takes them."""
    # A blocking exchange keeps both stages from computing.
    held_s = boundary_s(job, links) - free_p2p_s(job, links)
    if not job.execution.p2p_paired:
        held_s *= 2
    return [
        StageTimes(
            forward_s=cost.forward_s + held_s,
            backward_s=cost.input_s + held_s + (0.0 if splits else cost.weight_s),
            weight_s=cost.weight_s if splits else 0.0,
        )
        for cost in costs
    ]


def find_links(job: Job) -> Links:
    """Where each axis' groups sit on the nodes; ep is borrowed, nearest ranks first."""
    layout = job.layout
    degrees = (layout.tp, layout.cp, layout.ep, layout.dp, layout.pp)
    shard_size = job.execution.shard_size
    return place_links(job.hardware, layout.gpus_per_node, degrees, layout.order, shard_size)


def place_links(
    hardware: Hardware,
    per_node: int,
    degrees: tuple[int, int, int, int, int],
    order: Sequence[str],
    shard_size: int | None,
) -> Links:
    """The same of (tp, cp, ep, dp, pp) in an order of ranks."""
    tp, cp, ep, dp, pp = degrees
    sizes = {"tp": tp, "cp": cp, "dp": dp, "pp": pp}
    replicas, shards = digits_of(order, sizes, ("cp", "dp")), dp * cp
    shards = min(shard_size or shards, shards)
    same_experts: Digits = replicas
    ep_ranks: Digits = ()
    if ep > 1:
        ep_ranks, same_experts = expert_digits(order, sizes, ep)

    def link(digits: Digits) -> Link:
        return group_link(hardware, per_node, digits)

    def parts(digits: Digits, count: int) -> tuple[Link, Link, Link]:
        shard, replica = split_digits(digits, count)
        return link(shard), link(replica), link(digits)

    of_all = parts(replicas, shards)
    crosses = pp > 1 and link(digits_of(order, sizes, ("pp",))).crosses_nodes
    return Links(
        link(digits_of(order, sizes, ("tp",))),
        link(digits_of(order, sizes, ("cp",))),
        link(ep_ranks),
        _boundary_link(hardware, pp, crosses),
        *of_all,
        *(parts(same_experts, max(1, shards * tp // ep)) if ep > 1 else of_all),
    )


@lru_cache(maxsize=1024)
def _boundary_link(hardware: Hardware, pp: int, crosses: bool) -> Link:
    return make_link(hardware, pp, pp if crosses else 1, shares_adapters=False)


def summarise(
    job: Job,
    stages: Sequence[Stage],
    simulation: Simulation,
    chain: Chain,
    costs: Sequence[PartCost],
    links: Links,
    quicker: float = 1.0,
) -> Time:
    """The step's parts add up to its time; `costs` are of busy cores (`shared_cores`)."""
    layout, gpu = job.layout, job.hardware.gpu
    assert gpu is not None
    slowest = max(range(len(stages)), key=lambda stage: simulation.busy_s[stage])
    busy_s, count = simulation.busy_s[slowest], layout.num_microbatches
    wait_s = count * sum(cost.wait_s for cost in _costs_of(slowest, chain, costs)) / quicker
    kinds = {_kind(job, stage): (index, stage) for index, stage in enumerate(stages)}
    ends = [
        (stage, stage_state(job, stage, links), _costs_of(index, chain, costs))
        for index, stage in kinds.values()
    ]
    tail_s, optimizer_s = end_of_step(job, ends, links)
    speeds = stage_speeds(job.hardware, layout)
    optimizer_s /= min(speeds)
    exposed = wait_s + tail_s
    step_s = simulation.makespan_s + tail_s + optimizer_s
    tokens_per_s = layout.global_batch_size * layout.sequence_length / step_s
    per_gpu = tokens_per_s / layout.world_size
    flops = per_gpu * model_flops_per_token(job.model, layout.sequence_length)
    gpu_hours = layout.world_size * step_s * job.train_steps / 3600
    price = job.hardware.price_per_gpu_hour
    return Time(
        step_s=step_s,
        compute_s=busy_s - wait_s,
        bubble_s=max(0.0, simulation.makespan_s - busy_s),
        bubble_fraction=simulation.bubble_fraction,
        exposed_communication_s=exposed,
        optimizer_s=optimizer_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=per_gpu,
        tflops_per_gpu=flops / 1e12,
        mfu=flops / (peak_flops(gpu, job.execution.matmul) * sum(speeds) / len(speeds)),
        gpu_hours=gpu_hours,
        cost=None if price is None else price * gpu_hours,
    )


def end_of_step(
    job: Job, stages: Sequence[tuple[Stage, StageState, Sequence[PartCost]]], links: Links
) -> tuple[float, float]:
    """Seconds of communication, then of the optimizer, behind the pipeline; one stage of a kind
    stands for all.
    """
    layout, gpu = job.layout, job.hardware.gpu
    assert gpu is not None
    tails, updates = [], []
    for _, state, costs in stages:
        tails.append(tail_s_of(job, state, costs))
        updates.append(update_s(job, state))
    tail_s = max(tails) + embedding_s(job, links)
    if layout.sequence_parallel and layout.tp > 1:
        of_each = [stage for stage, _, _ in stages]
        tail_s += sum_of_partial_gradients(job, of_each, links.tp).seconds_per_step
    return tail_s, max(updates) + gpu.step_overhead_s


def _costs_of(stage: int, chain: Chain, costs: Sequence[PartCost]) -> list[PartCost]:
    return [costs[chain.part(stage, chunk)] for chunk in range(chain.num_chunks)]


def tail_s_of(job: Job, state: StageState, costs: Sequence[PartCost]) -> float:
    """Reduction and gather that stick out of the last backward and the first forward; of ZeRO-2
    without a pipeline, whose every backward reduces its gradients, out of all of them.
    """
    if state.traffic.per_microbatch:
        return 0.0  # in the passes
    reduce_s, gather_s = state.traffic.reduce_s, state.traffic.gather_s
    times = 1 if gradients_are_whole(job.layout) else job.layout.num_microbatches
    if not job.execution.overlap_dp:
        return times * reduce_s + gather_s
    backward_s = sum(cost.input_s + cost.weight_s for cost in costs)
    forward_s = sum(cost.forward_s for cost in costs)
    if job.execution.torch_pipeline:  # which reduces behind a stage's last backward
        return reduce_s + exposed_s(gather_s, forward_s)
    return times * exposed_s(reduce_s, backward_s) + exposed_s(gather_s, forward_s)


def embedding_s(job: Job, links: Links) -> float:
    """The gradients of tied embeddings are summed over the first and the last stage."""
    if job.layout.pp == 1 or not job.model.tie_embeddings:
        return 0.0
    return transfer_s("all_reduce", embedding_bytes(job), embedding_link(links))


UNFUSED_UPDATE = 2.5
"""An update in a kernel per operation reads and writes state that often."""


def update_s(job: Job, state: StageState) -> float:
    """Bound by memory: state read and written, gradients read for the norm and the update."""
    layout, execution, gpu = job.layout, job.execution, job.hardware.gpu
    assert gpu is not None
    owned = float(state.parameters)
    if layout.zero_stage:
        owned = (owned - state.expert_parameters) / shards_of(job)
        owned += state.expert_parameters / expert_shards_of(job)
    if execution.offload != "none":
        return _host_update_s(job, owned)
    times = 1.0 if execution.fused_optimizer else UNFUSED_UPDATE
    per_parameter = 2 * execution.state_bytes * times
    per_parameter += 3 * execution.gradient_bytes + execution.element_bytes
    return traffic_s(owned * per_parameter, gpu)


def _host_update_s(job: Job, owned: float) -> float:
    """Gradients to the node's RAM, the update there, weights back; nothing computes beside."""
    execution, node = job.execution, job.hardware.node
    assert node is not None
    link_s = owned * (execution.gradient_bytes + execution.element_bytes) / node.host_link_bandwidth
    per_parameter = 2 * execution.state_bytes + execution.gradient_bytes + execution.element_bytes
    shared = node.host_memory_bandwidth / job.layout.gpus_per_node
    return link_s + owned * per_parameter / shared
