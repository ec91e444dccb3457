"""How long one microbatch takes on one stage: computing and what it waits for on the way."""

from __future__ import annotations

from typing import NamedTuple

from launcher.plan.collectives import (
    Links,
    PassTimes,
    StateTraffic,
    ep_times,
    exposed_s,
    state_traffic,
    tp_times,
)
from launcher.plan.context_traffic import cp_times
from launcher.plan.encoder import encoder_job
from launcher.plan.execution import Job
from launcher.plan.kernels import traffic_s
from launcher.plan.operator_records import Work
from launcher.plan.operators import block_work, embedding_work, head_work
from launcher.plan.records import Stage
from launcher.plan.stages import (
    count_dense_layers,
    count_expert_parameters,
    count_stage_parameters,
)
from launcher.plan.tensor_traffic import runtime_tp_times
from launcher.plan.work_time import WorkTimes, time_work


class BlockTimes(NamedTuple):
    """Seconds per microbatch of one block; communication that nothing hides is apart."""

    forward_s: float = 0.0
    input_s: float = 0.0
    """Backward without the weight gradients, recomputation included."""
    weight_s: float = 0.0
    wait_forward_s: float = 0.0
    wait_backward_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Forward and backward, communication aside."""
        return self.forward_s + self.input_s + self.weight_s

    def times(self, count: float) -> BlockTimes:
        """So many blocks."""
        return BlockTimes(
            forward_s=count * self.forward_s,
            input_s=count * self.input_s,
            weight_s=count * self.weight_s,
            wait_forward_s=count * self.wait_forward_s,
            wait_backward_s=count * self.wait_backward_s,
        )

    def __add__(self, other: BlockTimes) -> BlockTimes:  # type: ignore[override]
        """One after the other."""
        return BlockTimes(
            forward_s=self.forward_s + other.forward_s,
            input_s=self.input_s + other.input_s,
            weight_s=self.weight_s + other.weight_s,
            wait_forward_s=self.wait_forward_s + other.wait_forward_s,
            wait_backward_s=self.wait_backward_s + other.wait_backward_s,
        )


class Parts(NamedTuple):
    """What stages are made of."""

    block: BlockTimes
    """With experts, where the model has them."""
    dense: BlockTimes
    """With a plain MLP; the same as `block` in a model without experts."""
    embedding: BlockTimes
    """With the encoder, where the model has one."""
    head: BlockTimes

    @property
    def block_s(self) -> float:
        """A block, forward and backward, communication aside."""
        return self.block.total_s

    @property
    def head_s(self) -> float:
        """The head, forward and backward."""
        return self.head.total_s

    @property
    def embedding_s(self) -> float:
        """The embedding, forward and backward."""
        return self.embedding.total_s


class Kernels(NamedTuple):
    """What the parts compute, timed once for all links and ways to recompute."""

    block: Timed
    dense: Timed
    embedding: BlockTimes
    head: BlockTimes
    encoder: Timed | None = None
    """A block of the encoder, where there is one."""


class Timed(NamedTuple):
    """Kernels of a block with their times."""

    work: Work
    times: WorkTimes


def list_kernels(job: Job) -> Kernels:
    """Of a job's degrees, sequence and microbatch; its pipeline and sharding have no part in it."""
    experts, work = job.model.experts, block_work(job)
    block = dense = Timed(work=work, times=time_work(job, work))
    if experts is not None and experts.num_dense_layers > 0:
        work = block_work(job, 0)
        dense = Timed(work=work, times=time_work(job, work))
    embedding, encoder = _end_times(time_work(job, embedding_work(job))), None
    if job.model.encoder:
        side = encoder_job(job)
        embedding += _end_times(time_work(side, embedding_work(side)))
        work = block_work(side)
        encoder = Timed(work=work, times=time_work(side, work))
    return Kernels(
        block=block,
        dense=dense,
        embedding=embedding,
        head=_end_times(time_work(job, head_work(job))),
        encoder=encoder,
    )


def estimate_parts(job: Job, links: Links | None = None, kernels: Kernels | None = None) -> Parts:
    """Times of blocks, embedding and head; without links, communication is left out.

    Who asks for the same kernels over several links has listed them before.
    """
    kernels = kernels or list_kernels(job)
    block = _block_times(job, links, kernels.block)
    has_dense = kernels.dense is not kernels.block
    embedding = kernels.embedding
    if kernels.encoder:
        side = encoder_job(job)
        embedding += _block_times(side, links, kernels.encoder).times(side.model.num_layers)
    return Parts(
        block=block,
        dense=_block_times(job, links, kernels.dense) if has_dense else block,
        embedding=embedding,
        head=kernels.head,
    )


def _end_times(times: WorkTimes) -> BlockTimes:
    return BlockTimes(
        forward_s=times.forward_s,
        input_s=times.input_gradient_s,
        weight_s=times.weight_gradient_s,
    )


def _block_times(job: Job, links: Links | None, timed: Timed) -> BlockTimes:
    """The mean of blocks that recompute and blocks that do not: each stage has both alike."""
    mode, again = job.execution.recompute, job.execution.recompute_share
    kinds = ((again, mode), (1 - again, "none"))
    found = [
        _recomputed(job, links, timed, recompute).times(share)
        for share, recompute in kinds
        if share > 0
    ]
    return found[0] if len(found) == 1 else found[0] + found[1]


def _recomputed(job: Job, links: Links | None, timed: Timed, recompute: str) -> BlockTimes:
    times = timed.times
    waits = _waits(job, links, timed, recompute) if links else PassTimes()
    return BlockTimes(
        forward_s=times.forward_s,
        input_s=times.input_gradient_s + times.again_s(recompute),
        weight_s=times.weight_gradient_s,
        wait_forward_s=waits.forward_s,
        wait_backward_s=waits.backward_s,
    )


def _tp_times(job: Job, links: Links, blocks: int, ends: int, again: float) -> PassTimes:
    """As the workers of this launcher do it, or as another program does."""
    times = tp_times if job.execution.row_chunks is None else runtime_tp_times
    return times(job, links, blocks, ends, again)


def _waits(job: Job, links: Links, timed: Timed, recompute: str) -> PassTimes:
    repeats = 1.0 if recompute == "full" else 0.0
    tp, cp = _tp_times(job, links, 1, 0, repeats), PassTimes()
    if job.layout.cp > 1:  # what hides it
        times = timed.times
        attention = PassTimes(forward_s=times.core_s, backward_s=times.core_gradient_s)
        cp = cp_times(job, links.cp, attention, recompute)
    ep = ep_times(timed.work, job, links)
    again = repeats * ep.forward_s
    if job.model.encoder:  # three branches of a decoder's block are summed, not two
        tp = PassTimes(forward_s=1.5 * tp.forward_s, backward_s=1.5 * tp.backward_s)
    return PassTimes(
        forward_s=tp.forward_s + cp.forward_s + ep.forward_s,
        backward_s=tp.backward_s + cp.backward_s + ep.backward_s + again,
    )


class PartCost(NamedTuple):
    """One part of the model (a stage, or a chunk of one), per microbatch."""

    forward_s: float
    input_s: float
    weight_s: float
    wait_s: float
    """Of all three, what is communication: inside blocks, and of sharded weights."""

    def at_speed(self, speed: float) -> PartCost:
        """On devices of another relative speed; waiting is taken to be shared out as computing."""
        if speed == 1.0:
            return self
        compute_s = self.forward_s + self.input_s + self.weight_s - self.wait_s
        longer = (compute_s / speed + self.wait_s) / (compute_s + self.wait_s)
        return PartCost(
            forward_s=self.forward_s * longer,
            input_s=self.input_s * longer,
            weight_s=self.weight_s * longer,
            wait_s=self.wait_s,
        )


def part_cost(job: Job, piece: Stage, parts: Parts, links: Links) -> PartCost:
    """All blocks of a part and the ends that it has."""
    dense = count_dense_layers(job.model, piece.first_layer, piece.end_layer)
    total = parts.dense.times(dense) + parts.block.times(piece.num_layers - dense)
    total += parts.embedding.times(piece.is_first) + parts.head.times(piece.is_last)
    ends = _tp_times(job, links, 0, 1, 0.0)
    wait_forward = total.wait_forward_s + piece.is_first * ends.forward_s
    wait_backward = total.wait_backward_s + piece.is_last * ends.backward_s
    if job.layout.zero_stage == 3:
        sharded = _sharded_waits(job, piece, links, total)
        wait_forward += sharded.forward_s
        wait_backward += sharded.backward_s
    fetch_s = _fetched_s(job, piece)
    wait_forward += exposed_s(fetch_s, total.forward_s)
    wait_backward += exposed_s(fetch_s, total.input_s + total.weight_s)
    return PartCost(
        forward_s=total.forward_s + wait_forward,
        input_s=total.input_s + wait_backward,
        weight_s=total.weight_s,
        wait_s=wait_forward + wait_backward,
    )


def unit_costs(job: Job, parts: Parts, links: Links) -> tuple[PartCost, ...]:
    """Of a block, of one without experts, of the model's first and of its last end: their sums are
    those of `part_cost` where nothing is sharded or fetched that a part waits for.
    """
    ends = _tp_times(job, links, 0, 1, 0.0)
    first = parts.embedding + BlockTimes(wait_forward_s=ends.forward_s)
    last = parts.head + BlockTimes(wait_backward_s=ends.backward_s)
    return tuple([
        PartCost(
            forward_s=unit.forward_s + unit.wait_forward_s,
            input_s=unit.input_s + unit.wait_backward_s,
            weight_s=unit.weight_s,
            wait_s=unit.wait_forward_s + unit.wait_backward_s,
        )
        for unit in (parts.block, parts.dense, first, last)
    ])  # fmt: skip


def _fetched_s(job: Job, piece: Stage) -> float:
    """Weights that wait in the node's RAM come once per pass, beside the computing."""
    node, layout = job.hardware.node, job.layout
    if job.execution.offload != "parameters" or node is None:
        return 0.0
    size = count_stage_parameters(
        job.model, piece.num_layers, piece.is_first, piece.is_last, layout.tp, layout.ep
    )
    shards = layout.dp * layout.cp if layout.zero_stage == 3 else 1
    return size * job.execution.element_bytes / shards / node.host_link_bandwidth


def _sharded_waits(job: Job, piece: Stage, links: Links, compute: BlockTimes) -> PassTimes:
    """Of a part whose weights are sharded."""
    state = stage_state(job, piece, links)
    backward_s = compute.input_s + compute.weight_s
    copies_s = copies_s_of(job, state.parameters)
    return sharded_waits(
        state.traffic, copies_s, job.execution.overlap_dp, compute.forward_s, backward_s
    )


def sharded_waits(
    traffic: StateTraffic, copies_s: float, overlaps: bool, forward_s: float, backward_s: float
) -> PassTimes:
    """ZeRO-3 gathers before each pass and scatters gradients: beside the computing of that pass,
    or between.
    """
    gather_s, reduce_s = traffic.gather_s, traffic.reduce_s
    if not overlaps:
        return PassTimes(
            forward_s=gather_s + copies_s, backward_s=gather_s + reduce_s + 2 * copies_s
        )
    return PassTimes(
        forward_s=exposed_s(gather_s, forward_s) + copies_s,
        backward_s=exposed_s(gather_s + reduce_s, backward_s) + 2 * copies_s,
    )


def copies_s_of(job: Job, parameters: float) -> float:
    """Gathered weights are read and written once more, out of the buffer of the collective."""
    gpu = job.hardware.gpu
    assert gpu is not None
    return traffic_s(2 * job.execution.gather_bytes * parameters, gpu)


class StageState(NamedTuple):
    """What one rank of a stage holds, and its traffic."""

    parameters: float
    expert_parameters: float
    traffic: StateTraffic
    """Once per step, or per microbatch under ZeRO-3."""


def stage_state(job: Job, stage: Stage, links: Links) -> StageState:
    """Of a stage, or of a chunk of one."""
    layout, blocks = job.layout, stage.num_layers
    parameters = count_stage_parameters(
        job.model, blocks, stage.is_first, stage.is_last, layout.tp, layout.ep
    )
    experts = count_expert_parameters(job.model, blocks, stage.is_first, layout.tp, layout.ep)
    return StageState(
        parameters=parameters,
        expert_parameters=experts,
        traffic=state_traffic(job, links, parameters, experts, max(1, blocks)),
    )
