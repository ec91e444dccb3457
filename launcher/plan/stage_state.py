"""What a stage holds of the model, how that travels, and what its passes wait for it."""

from __future__ import annotations

from typing import NamedTuple

from launcher.plan.collectives import Links, PassTimes, StateTraffic, exposed_s, state_traffic
from launcher.plan.execution import Job, shards_of
from launcher.plan.kernels import traffic_s
from launcher.plan.memory_shares import rank_parameters, rank_share
from launcher.plan.records import Stage
from launcher.plan.stages import count_expert_parameters, count_stage_parameters, dense_layers_of


class StageState(NamedTuple):
    """What one rank of a stage holds, and its traffic."""

    parameters: float
    expert_parameters: float
    traffic: StateTraffic
    """Once per step, or per microbatch under ZeRO-3."""


def stage_state(job: Job, stage: Stage, links: Links) -> StageState:
    """Of a stage, or of a chunk of one."""
    layout, blocks = job.layout, stage.num_layers
    dense = dense_layers_of(job.model, stage)
    parameters = count_stage_parameters(
        job.model, blocks, stage.is_first, stage.is_last, layout.tp, layout.ep, dense
    )
    experts = count_expert_parameters(job.model, blocks, dense, layout.tp, layout.ep)
    return StageState(
        parameters=parameters,
        expert_parameters=experts,
        traffic=state_traffic(job, links, parameters, experts, max(1, blocks)),
    )


def fetched_s(job: Job, piece: Stage) -> float:
    """Weights that wait in the node's RAM come once per pass, beside the computing."""
    node = job.hardware.node
    return fetched_bytes(job, piece) / node.host_link_bandwidth if node else 0.0


def fetched_bytes(job: Job, piece: Stage) -> int:
    """What a rank fetches of its node's RAM for one pass: its part of weights that wait there."""
    if job.execution.offload != "parameters":
        return 0
    size = rank_parameters(job, piece)
    share = rank_share(job, piece, size) if job.layout.zero_stage == 3 else size
    return share * job.execution.element_bytes


def stage_waits(
    job: Job, piece: Stage, links: Links, forward_s: float, backward_s: float
) -> PassTimes:
    """Of a part whose weights are sharded and whose passes take so long."""
    state = stage_state(job, piece, links)
    copies_s = copies_s_of(job, state.parameters)
    return sharded_waits(state.traffic, copies_s, job.execution.overlap_dp, forward_s, backward_s)


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
    """Gathered weights are read and written once more, out of the buffer of the collective; what
    nobody shares is not gathered.
    """
    gpu = job.hardware.gpu
    assert gpu is not None
    if shards_of(job) == 1:
        return 0.0
    return traffic_s(2 * job.execution.gather_bytes * parameters, gpu)
