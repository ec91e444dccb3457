"""What travels in one step: bytes and seconds per axis, from the layout and the links."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.plan.collectives import Links, boundary_bytes
from launcher.plan.context_traffic import cp_traffic
from launcher.plan.costs import sum_sizes, tied_copy
from launcher.plan.encoder import encoder_job
from launcher.plan.execution import Job
from launcher.plan.links import Link, sent_bytes, transfer_s
from launcher.plan.memory_fsdp2 import gathered_per_microbatch
from launcher.plan.operator_records import size_of
from launcher.plan.operators import block_work
from launcher.plan.records import Communication, Layout, Stage
from launcher.plan.stages import count_stage_parameters, dense_layers_of
from launcher.plan.tensor_traffic import count_collectives, partial_gradients


def gradients_are_whole(layout: Layout) -> bool:
    """Whether a rank keeps all gradients of its stage until the end of the step.

    ZeRO-2 shards them as they come, but not inside a pipeline: there microbatches add up first,
    because a reduction for each of them would multiply the traffic (and tied embeddings need the
    sum over both stages). FSDP2 reduces whatever the last backward leaves while that one runs.
    """
    if layout.engine == "fsdp2" and layout.num_microbatches * layout.vpp == 1:
        return False
    return layout.zero_stage < 2 or (layout.zero_stage == 2 and layout.pp > 1)


def list_communication(
    job: Job, stages: Sequence[Stage], links: Links
) -> tuple[Communication, ...]:
    """Everything that the busiest rank sends in one step, axis by axis; silent axes are absent."""
    layout, model = job.layout, job.model
    entries: list[Communication] = []
    if layout.tp > 1:
        entries += _tensor_parallel(job, stages, links.tp)
    if layout.cp > 1:
        entries += cp_traffic(job, stages, links.cp)
    if layout.ep > 1:
        payload = round(block_work(job).all_to_all_bytes)
        blocks = max(stage.num_layers for stage in stages)
        count = 4 * blocks * layout.num_microbatches
        entries.append(_entry("ep", "all_to_all", payload, count, links.ep))
    if layout.pp > 1:
        # With chunks, the outer stages are neighbours too, or one in the middle talks both ways.
        directions = 2 if layout.pp > 2 or layout.vpp > 1 else 1
        count = directions * layout.num_microbatches * layout.vpp
        entries.append(_entry("pp", "send_recv", boundary_bytes(job), count, links.pp))
    if links.dp.group_size > 1:
        entries += _data_parallel(job, stages, links)
    if layout.pp > 1 and model.tie_embeddings:
        rows = layout.dp if layout.engine == "fsdp2" else 1  # which sums the rows of each dp rank
        payload = job.execution.reduce_bytes * sum_sizes(tied_copy(model), layout.tp) // rows
        entries.append(_entry("embedding", "all_reduce", payload, 1, embedding_link(links)))
    return tuple(entries)


def _tensor_parallel(job: Job, stages: Sequence[Stage], link: Link) -> list[Communication]:
    """The activations of all microbatches, and the gradients that every rank has a part of."""
    layout, count = job.layout, job.layout.num_microbatches
    payload = size_of(job).tokens * job.model.hidden_size * job.execution.element_bytes
    passes = [count_collectives(stage, layout.recompute) for stage in stages]
    sums = count * max(each.sums for each in passes)
    if job.model.encoder:
        return _encoder_decoder_tp(job, payload, sums, link)
    if not layout.sequence_parallel:
        return [_entry("tp", "all_reduce", payload, sums, link)]
    wholes = count * max(each.wholes for each in passes)
    return [
        _entry("tp", "all_gather", payload, wholes, link),
        _entry("tp", "reduce_scatter", payload, sums, link),
        sum_of_partial_gradients(job, stages, link),
    ]


def _encoder_decoder_tp(job: Job, payload: int, sums: int, link: Link) -> list[Communication]:
    """Three sums in a block of the decoder, and two in one of the encoder over the input."""
    side = encoder_job(job)
    read = size_of(side).tokens * job.model.hidden_size * job.execution.element_bytes
    again = side.model.num_layers if job.layout.recompute == "full" else 0
    times = job.layout.num_microbatches * (4 * side.model.num_layers + again)
    both = round((payload * 1.5 * sums + read * times) / (1.5 * sums + times))
    count = round(1.5 * sums) + times
    if not job.layout.sequence_parallel:
        return [_entry("tp", "all_reduce", both, count, link)]
    return [
        _entry("tp", "all_gather", both, count, link),
        _entry("tp", "reduce_scatter", both, count, link),
    ]


def sum_of_partial_gradients(job: Job, stages: Sequence[Stage], link: Link) -> Communication:
    """Once per step in one buffer, or one by one in every backward that shards them at once."""
    number, elements = partial_gradients(job, stages)
    payload = job.execution.reduce_bytes * elements
    if gradients_are_whole(job.layout) or job.layout.engine == "fsdp2":
        return _entry("tp", "all_reduce", payload, 1, link)
    count = number * job.layout.num_microbatches
    return _entry("tp", "all_reduce", payload // number, count, link)


def embedding_link(links: Links) -> Link:
    """Between the first and the last stage."""
    return links.pp._replace(group_size=2)


def _data_parallel(job: Job, stages: Sequence[Stage], links: Links) -> list[Communication]:
    """Gradients once, or per microbatch where they are sharded; weights after the step or before
    every use.
    """
    layout, execution, link = job.layout, job.execution, links.dp
    size = max(
        count_stage_parameters(
            job.model, stage.num_layers, stage.is_first, stage.is_last,
            layout.tp, layout.ep, dense_layers_of(job.model, stage),
        )
        for stage in stages
    )  # fmt: skip
    reductions = 1 if gradients_are_whole(layout) else layout.num_microbatches
    scatters = layout.zero_stage == 3 or (layout.zero_stage and not execution.reduces_by_all_reduce)
    op = "reduce_scatter" if scatters else "all_reduce"
    shard = links.shard if layout.zero_stage else link
    if op == "reduce_scatter":
        entries = [_entry("dp", op, execution.reduce_bytes * size, reductions, shard)]
        if links.replica.group_size > 1:  # HSDP: sums of the groups, over their replicas
            part = execution.reduce_bytes * size // shard.group_size
            entries.append(_entry("dp", "all_reduce", part, reductions, links.replica))
    else:
        entries = [_entry("dp", op, execution.reduce_bytes * size, reductions, link)]
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * layout.num_microbatches}[layout.zero_stage]
    if layout.engine == "fsdp2" and layout.zero_stage == 3:
        gathers = layout.num_microbatches
        size = max(gathered_per_microbatch(job.model, stage, layout.tp) for stage in stages)
    if gathers:
        entries.append(_entry("dp", "all_gather", execution.gather_bytes * size, gathers, shard))
    return entries


def _entry(axis: str, op: str, payload_bytes: int, count: int, link: Link) -> Communication:
    return Communication(
        axis=axis,
        op=op,
        group_size=link.group_size,
        crosses_nodes=link.crosses_nodes,
        bytes_per_step=round(count * sent_bytes(op, payload_bytes, link.group_size)),
        seconds_per_step=count * transfer_s(op, payload_bytes, link),
    )
