"""How long one microbatch takes on one stage: computing and what it waits for on the way."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.collectives import (
    Links,
    PassTimes,
    StateTraffic,
    cp_times,
    ep_times,
    exposed_s,
    state_traffic,
    tp_times,
)
from launcher.plan.execution import Job
from launcher.plan.kernels import traffic_s
from launcher.plan.operators import Work, block_work, embedding_work, head_work
from launcher.plan.records import Stage
from launcher.plan.stages import count_expert_parameters, count_stage_parameters
from launcher.plan.work_time import WorkTimes, time_work


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """Blocks that take the same time."""

    share: float
    """Of all blocks."""
    times: WorkTimes
    communication: PassTimes


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds per microbatch of what stages are made of."""

    block_forward_s: float
    block_input_s: float
    """Backward without the weight gradients, recomputation included."""
    block_weight_s: float
    block_wait_forward_s: float
    """Communication inside a block that nothing hides, forward."""
    block_wait_backward_s: float
    embedding_forward_s: float
    embedding_backward_s: float
    head_forward_s: float
    head_input_s: float
    head_weight_s: float

    @property
    def block_s(self) -> float:
        """A block, forward and backward, communication aside."""
        return self.block_forward_s + self.block_input_s + self.block_weight_s

    @property
    def head_s(self) -> float:
        """The head, forward and backward."""
        return self.head_forward_s + self.head_input_s + self.head_weight_s

    @property
    def embedding_s(self) -> float:
        """The embedding, forward and backward."""
        return self.embedding_forward_s + self.embedding_backward_s


def estimate_parts(job: Job, links: Links | None = None) -> Parts:
    """Times of block (the mean, where kinds differ), embedding and head."""
    kinds = _block_kinds(job, links)
    embedding = time_work(job, embedding_work(job))
    head = time_work(job, head_work(job))
    return Parts(
        block_forward_s=sum(kind.share * kind.times.forward_s for kind in kinds),
        block_input_s=sum(
            kind.share * (kind.times.input_gradient_s + kind.times.again_s) for kind in kinds
        ),
        block_weight_s=sum(kind.share * kind.times.weight_gradient_s for kind in kinds),
        block_wait_forward_s=sum(kind.share * kind.communication.forward_s for kind in kinds),
        block_wait_backward_s=sum(kind.share * kind.communication.backward_s for kind in kinds),
        embedding_forward_s=embedding.forward_s,
        embedding_backward_s=embedding.backward_s,
        head_forward_s=head.forward_s,
        head_input_s=head.input_gradient_s,
        head_weight_s=head.weight_gradient_s,
    )


def _block_kinds(job: Job, links: Links | None) -> tuple[BlockKind, ...]:
    """Blocks with and without experts, each with and without recomputation."""
    experts, layers = job.model.experts, job.model.num_layers
    dense = experts.num_dense_layers / layers if experts else 0.0
    works = [(1 - dense, block_work(job))]
    if dense:
        works.append((dense, block_work(job, 0)))
    mode, again = job.execution.recompute, job.execution.recompute_share
    kinds = []
    for share, work in works:
        for part, recompute in ((share * again, mode), (share * (1 - again), "none")):
            if part > 0:
                times = time_work(job, work, recompute)
                waits = _waits(job, links, work, recompute) if links else PassTimes()
                kinds.append(BlockKind(share=part, times=times, communication=waits))
    return tuple(kinds)


def _waits(job: Job, links: Links, work: Work, recompute: str) -> PassTimes:
    repeats = 1.0 if recompute == "full" else 0.0
    core = time_work(job, Work(attention=work.attention))
    tp = tp_times(job, links, 1, 0, repeats)
    attention = PassTimes(forward_s=core.forward_s, backward_s=core.input_gradient_s)
    cp = cp_times(job, links, attention)
    ep = ep_times(work, job, links)
    again = repeats * (cp.forward_s + ep.forward_s)
    return PassTimes(
        forward_s=tp.forward_s + cp.forward_s + ep.forward_s,
        backward_s=tp.backward_s + cp.backward_s + ep.backward_s + again,
    )


@dataclass(frozen=True, kw_only=True)
class EndCosts:
    """Embedding and head, per microbatch, where a part of the model has them."""

    forward_s: float
    input_s: float
    weight_s: float


def end_costs(parts: Parts, is_first: bool, is_last: bool) -> EndCosts:
    """What the ends add to a part."""
    return EndCosts(
        forward_s=is_first * parts.embedding_forward_s + is_last * parts.head_forward_s,
        input_s=is_first * parts.embedding_backward_s + is_last * parts.head_input_s,
        weight_s=is_last * parts.head_weight_s,
    )


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The blocks of one stage, per microbatch; waits are in the pass times and apart."""

    forward_s: float
    input_s: float
    weight_s: float
    wait_s: float
    """Of all three, what is communication: inside blocks, and of sharded weights."""
    tail: StateTraffic
    """Once per step."""
    parameters: float
    expert_parameters: float


def stage_cost(job: Job, stage: Stage, parts: Parts, links: Links) -> StageCost:
    """All blocks of a stage; its ends count where their computing hides communication."""
    blocks, layout = stage.end_layer - stage.first_layer, job.layout
    first, last = stage.is_first, stage.is_last
    ends = tp_times(job, links, 0, 1, 0.0)
    wait_forward = blocks * parts.block_wait_forward_s + first * ends.forward_s
    wait_backward = blocks * parts.block_wait_backward_s + last * ends.backward_s
    forward, backward = blocks * parts.block_forward_s, blocks * parts.block_input_s
    weight = blocks * parts.block_weight_s
    parameters = count_stage_parameters(job.model, blocks, first, last, layout.tp, layout.ep)
    experts = count_expert_parameters(job.model, blocks, first, layout.tp, layout.ep)
    tail = state_traffic(job, links, parameters, experts, max(1, blocks))
    if tail.per_microbatch:
        own = end_costs(parts, first, last)
        gather, reduce = _sharded_waits(
            job, tail, forward + own.forward_s, backward + weight + own.input_s + own.weight_s
        )
        copies = _copies_s(job, parameters)
        wait_forward += gather + copies
        wait_backward += reduce + 2 * copies
        tail = StateTraffic(reduce_s=0.0, gather_s=0.0, per_microbatch=True)
    return StageCost(
        forward_s=forward + wait_forward,
        input_s=backward + wait_backward,
        weight_s=weight,
        wait_s=wait_forward + wait_backward,
        tail=tail,
        parameters=parameters,
        expert_parameters=experts,
    )


def _sharded_waits(
    job: Job, traffic: StateTraffic, forward_s: float, backward_s: float
) -> tuple[float, float]:
    """ZeRO-3 gathers before each pass and scatters gradients: beside the computing, or between."""
    if not job.execution.overlap_dp:
        return traffic.gather_s, traffic.gather_s + traffic.reduce_s
    return (
        exposed_s(traffic.gather_s, forward_s),
        exposed_s(traffic.gather_s + traffic.reduce_s, backward_s),
    )


def _copies_s(job: Job, parameters: float) -> float:
    """Gathered weights are read and written once more, out of the buffer of the collective."""
    gpu = job.hardware.gpu
    assert gpu is not None
    return traffic_s(2 * job.execution.gather_bytes * parameters, gpu)
