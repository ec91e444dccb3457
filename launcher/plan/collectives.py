"""What a rank's communication costs in one step: every axis, exposed or beside the computing."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from launcher.config.schema import Model
from launcher.plan.costs import block_parameters, embedding_parameters, head_parameters
from launcher.plan.encoder import memory_bytes
from launcher.plan.execution import Job
from launcher.plan.links import Link, broadcast_s, transfer_s
from launcher.plan.operator_records import Work, size_of

SLOWDOWN = 0.29
"""Seconds that computing loses per second of a collective beside it: NCCL's kernels take
multiprocessors and memory bandwidth. Fitted on all rows of docs/backtest.md together."""


class Links(NamedTuple):
    """The link of every axis that communicates."""

    tp: Link
    cp: Link
    ep: Link
    pp: Link
    shard: Link
    """Ranks that share sharded state: dp x cp, or less of it."""
    replica: Link
    """Ranks that hold the same shard."""
    dp: Link
    """All of dp x cp."""
    expert_shard: Link
    """The same three of ranks that hold the same experts."""
    expert_replica: Link
    expert_dp: Link


class PassTimes(NamedTuple):
    """Seconds of one microbatch's communication, forward and backward, not hidden."""

    forward_s: float = 0.0
    backward_s: float = 0.0


def exposed_s(communication_s: float, window_s: float) -> float:
    """What a step loses to a collective beside `window_s` of computing."""
    # Without `min` and `max`: searches ask ten thousands of times.
    hidden = communication_s if communication_s < window_s else window_s
    together_s = window_s + SLOWDOWN * hidden
    return (communication_s if communication_s > together_s else together_s) - window_s


def tp_times(job: Job, links: Links, blocks: int, ends: int, again: float) -> PassTimes:
    """All-reduces of activations, or as many pairs of gather and scatter (the same bytes)."""
    if job.layout.tp == 1:
        return PassTimes()
    size, execution = size_of(job), job.execution
    payload = size.tokens * job.model.hidden_size * execution.element_bytes
    split = execution.sequence_parallel
    each = _pair_s(payload, links.tp) if split else transfer_s("all_reduce", payload, links.tp)
    per_block = 1 if execution.parallel_block else 2
    repeated = per_block if execution.final_all_reduce_again else max(0, per_block - 1)
    share = 1 / job.layout.tp + SLOWDOWN if execution.overlap_tp else 1.0
    forward = per_block * blocks * share + ends
    backward = (per_block + repeated * again) * blocks * share + ends
    extra = 0.0
    if split:  # inputs of the products are gathered once more, beside the input gradient
        extra = per_block * blocks * SLOWDOWN * transfer_s("all_gather", payload, links.tp)
    return PassTimes(forward_s=forward * each, backward_s=backward * each + extra)


def _pair_s(payload: float, link: Link) -> float:
    return transfer_s("all_gather", payload, link) + transfer_s("reduce_scatter", payload, link)


def ep_times(work: Work, job: Job, links: Links) -> PassTimes:
    """Tokens to their experts and back, forward and backward."""
    if not work.all_to_all_bytes or job.layout.ep == 1:
        return PassTimes()
    each = transfer_s("all_to_all", exchanged_bytes(work, job, links.ep), links.ep)
    return PassTimes(forward_s=2 * each, backward_s=2 * each)


def exchanged_bytes(work: Work, job: Job, link: Link) -> float:
    """Of one exchange. Where a node gets a token once, it is as many copies as nodes, by mean of
    experts that are chosen evenly; of copies and of nodes the same share is the sender's own.
    """
    execution, experts = job.execution, job.model.experts
    if not (execution.sends_to_nodes and link.crosses_nodes and experts):
        return work.all_to_all_bytes
    nodes = min(link.num_nodes, execution.most_expert_nodes or link.num_nodes)
    reached = nodes * (1 - (1 - 1 / nodes) ** experts.experts_per_token)
    return work.all_to_all_bytes * reached / experts.experts_per_token


def boundary_bytes(job: Job) -> int:
    """What passes from one stage to the next: every tp rank holds and sends all of its tokens."""
    sent = size_of(job).norm_tokens * job.model.hidden_size * job.execution.element_bytes
    return sent + memory_bytes(job)


def boundary_s(job: Job, links: Links) -> float:
    """From the end of a pass on one stage to the arrival of its result on the next."""
    return 0.0 if job.layout.pp == 1 else hop_s(job, links)


def hop_s(job: Job, links: Links) -> float:
    """The same where there is a next stage."""
    payload, execution = boundary_bytes(job), job.execution
    if execution.p2p_split and not execution.sequence_parallel and job.layout.tp > 1:
        gathered = transfer_s("all_gather", payload, links.tp)
        shared_s = transfer_s("send_recv", payload / job.layout.tp, links.pp) + gathered
        if not execution.p2p_whole_gradients:
            return shared_s
        return (shared_s + transfer_s("send_recv", payload, links.pp)) / 2  # of both ways
    return transfer_s("send_recv", payload, links.pp)


class StateTraffic(NamedTuple):
    """Seconds of one step's traffic of gradients and weights on one stage."""

    reduce_s: float
    """Once per step, or per microbatch where gradients are sharded as they come."""
    gather_s: float
    per_microbatch: bool


def state_traffic(
    job: Job, links: Links, parameters: float, expert_parameters: float, units: int
) -> StateTraffic:
    """`parameters` of one rank's stage in `units` messages; experts have fewer replicas."""
    if not expert_parameters or job.layout.ep == 1:
        return _state_traffic(job, links, parameters, units)
    plain = _state_traffic(job, links, parameters - expert_parameters, units)
    experts = _state_traffic(job, expert_links(links), expert_parameters, units)
    return StateTraffic(
        reduce_s=plain.reduce_s + experts.reduce_s,
        gather_s=plain.gather_s + experts.gather_s,
        per_microbatch=plain.per_microbatch,
    )


def expert_links(links: Links) -> Links:
    """Of those that hold the same experts, in the place of those that hold the same of the rest."""
    return links._replace(
        shard=links.expert_shard, replica=links.expert_replica, dp=links.expert_dp
    )


def _state_traffic(job: Job, links: Links, parameters: float, units: int) -> StateTraffic:
    execution, stage = job.execution, job.layout.zero_stage
    gradients = execution.reduce_bytes * parameters
    weights = execution.gather_bytes * parameters
    between = _many_s("all_reduce", gradients / links.shard.group_size, units, links.replica)
    if stage in (1, 2) and execution.whole_tensors:  # its ZeRO-3 cuts every tensor
        owners = min(links.shard.group_size, count_tensors(job.model, units))
        reduce_s = owners * broadcast_s(gradients / owners, links.shard) + between
        gather_s = owners * broadcast_s(weights / owners, links.shard)
        return StateTraffic(reduce_s=reduce_s, gather_s=gather_s, per_microbatch=stage == 3)
    if stage == 0 or (execution.reduces_by_all_reduce and stage < 3):
        reduce_s = _many_s("all_reduce", gradients, units, links.dp)
    else:
        reduce_s = _many_s("reduce_scatter", gradients, units, links.shard) + between
    gather_s = _many_s("all_gather", weights, units, links.shard) if stage else 0.0
    return StateTraffic(reduce_s=reduce_s, gather_s=gather_s, per_microbatch=stage == 3)


@lru_cache(maxsize=1024)
def count_tensors(model: Model, blocks: int) -> int:
    """Weights and biases of so many blocks and of both ends."""
    ends = len(embedding_parameters(model)) + len(head_parameters(model))
    return blocks * len(block_parameters(model, 0)) + ends


def _many_s(op: str, payload: float, units: int, link: Link) -> float:
    return units * transfer_s(op, payload / units, link)
