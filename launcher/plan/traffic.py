"""What travels in one step: bytes and seconds per axis, from the layout and the links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import itemgetter

from launcher.plan.collectives import Links, boundary_bytes, exchanged_bytes, expert_links
from launcher.plan.context_traffic import cp_traffic
from launcher.plan.costs import sum_sizes, tied_copy
from launcher.plan.encoder import encoder_job
from launcher.plan.execution import Job, shards_of
from launcher.plan.links import Link, sent_bytes, transfer_s
from launcher.plan.memory_fsdp2 import gathered_per_microbatch
from launcher.plan.memory_shares import rank_parameters
from launcher.plan.operator_records import size_of
from launcher.plan.operators import block_work
from launcher.plan.records import Communication, Layout, Stage
from launcher.plan.stage_state import fetched_bytes
from launcher.plan.stages import count_expert_parameters, dense_layers_of
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
        entries.append(_expert_parallel(job, stages, links.ep))
    if layout.pp > 1:
        count = layout.num_microbatches * _most_sends(stages)
        entries.append(_entry("pp", "send_recv", boundary_bytes(job), count, links.pp))
    if links.dp.group_size > 1:
        entries += _data_parallel(job, stages, links)
    if job.execution.offload == "parameters":
        entries.append(_fetches(job, stages))
    if layout.pp > 1 and model.tie_embeddings:
        link = embedding_link(links)
        entries.append(_entry("embedding", "all_reduce", embedding_bytes(job), 1, link))
    return tuple(entries)


def _most_sends(stages: Sequence[Stage]) -> int:
    """Transfers of one microbatch, there and back, of the stage that sends most: its parts' outputs
    and their inputs' gradients, where the neighbouring part is not its own.
    """
    parts = [
        (start, end, stage.stage)
        for stage in stages
        for start, end in stage.chunks or ((stage.first_layer, stage.end_layer),)
    ]
    sends = [0] * len(stages)
    for (_, _, here), (_, _, there) in pairwise(sorted(parts)):
        if here != there:
            sends[here] += 1
            sends[there] += 1
    return max(sends)


def _tensor_parallel(job: Job, stages: Sequence[Stage], link: Link) -> list[Communication]:
    """The activations of all microbatches, and the gradients that every rank has a part of."""
    layout, count = job.layout, job.layout.num_microbatches
    payload = size_of(job).tokens * job.model.hidden_size * job.execution.element_bytes
    share = job.execution.recompute_share
    if job.model.encoder:
        return _encoder_decoder_tp(job, payload, stages, link)
    passes = [count_collectives(stage, layout.recompute, share) for stage in stages]
    sums = count * max(each.sums for each in passes)
    if not layout.sequence_parallel:
        return [_entry("tp", "all_reduce", payload, sums, link)]
    wholes = count * max(each.wholes for each in passes)
    return [
        _entry("tp", "all_gather", payload, wholes, link),
        _entry("tp", "reduce_scatter", payload, sums, link),
        sum_of_partial_gradients(job, stages, link),
    ]


def _encoder_decoder_tp(
    job: Job, payload: int, stages: Sequence[Stage], link: Link
) -> list[Communication]:
    """Three sums in a block of the decoder, and two in one of the encoder over the input, of the
    stage that sends most.
    """
    side, mode, share = encoder_job(job), job.layout.recompute, job.execution.recompute_share
    read = size_of(side).tokens * job.model.hidden_size * job.execution.element_bytes
    reader = Stage(
        stage=0, first_layer=0, end_layer=side.model.num_layers, parameters=0, is_first=False,
        is_last=False,
    )  # fmt: skip
    of_reader = count_collectives(reader, mode, share)
    passes = [(count_collectives(stage, mode, share), stage.is_first) for stage in stages]

    def entry(op: str, kind: str) -> Communication:
        found = [
            (1.5 * getattr(each, kind), is_first * getattr(of_reader, kind))
            for each, is_first in passes
        ]
        written, of_input = max(found, key=lambda one: payload * one[0] + read * one[1])
        times = round(written) + of_input
        both = round((payload * written + read * of_input) / times)
        return _entry("tp", op, both, job.layout.num_microbatches * times, link)

    if not job.layout.sequence_parallel:
        return [entry("all_reduce", "sums")]
    return [
        entry("all_gather", "wholes"),
        entry("reduce_scatter", "sums"),
        sum_of_partial_gradients(job, stages, link),
    ]


def sum_of_partial_gradients(job: Job, stages: Sequence[Stage], link: Link) -> Communication:
    """Once per step in one buffer, or one by one in every backward that shards them at once."""
    number, elements = partial_gradients(job, stages)
    payload = job.execution.reduce_bytes * elements
    if gradients_are_whole(job.layout) or job.layout.engine == "fsdp2":
        return _entry("tp", "all_reduce", payload, 1, link)
    count = number * job.layout.num_microbatches
    return _entry("tp", "all_reduce", payload // number, count, link)


def embedding_bytes(job: Job) -> int:
    """The gradient of a tied table; FSDP2 has summed it over replicas before, and each has its
    rows.
    """
    rows = shards_of(job) if job.layout.engine == "fsdp2" else 1
    table = sum_sizes(tied_copy(job.model), job.layout.tp)
    return job.execution.reduce_bytes * table // rows


def embedding_link(links: Links) -> Link:
    """Between the first and the last stage."""
    return links.pp._replace(group_size=2)


def _expert_parallel(job: Job, stages: Sequence[Stage], link: Link) -> Communication:
    """Tokens to their experts and back, in both passes and in the forward pass that is repeated."""
    payload = round(exchanged_bytes(block_work(job), job, link))
    blocks = max(stage.num_layers - dense_layers_of(job.model, stage) for stage in stages)
    count = (4 * blocks + 2 * _blocks_again(job, blocks)) * job.layout.num_microbatches
    return _entry("ep", "all_to_all", payload, count, link)


def _blocks_again(job: Job, blocks: int) -> int:
    """Of so many, those whose forward pass is repeated whole."""
    return round(job.execution.recompute_share * blocks) if job.layout.recompute == "full" else 0


def _data_parallel(job: Job, stages: Sequence[Stage], links: Links) -> list[Communication]:
    """Of the stage that holds most; experts, which have fewer replicas, by themselves."""
    entries = list(_shared("dp", job, stages, links, of_experts=False))
    if job.layout.ep > 1:
        entries += _shared("expert dp", job, stages, expert_links(links), of_experts=True)
    return [entry for entry in entries if entry.group_size > 1]


def _shared(
    axis: str, job: Job, stages: Sequence[Stage], links: Links, *, of_experts: bool
) -> Iterator[Communication]:
    """Gradients once, or per microbatch where they are sharded; weights after the step or before
    every use.
    """
    layout, execution = job.layout, job.execution
    sizes = [_shared_size(job, stage, of_experts) for stage in stages]
    size, stage = max(zip(sizes, stages, strict=True), key=itemgetter(0))
    units = max(1, stage.num_layers)

    def entry(op: str, payload: int, times: int, link: Link) -> Communication:
        return _entry(axis, op, payload / units, units * times, link)

    reductions = 1 if gradients_are_whole(layout) else layout.num_microbatches
    gradients = execution.reduce_bytes * size
    shard = links.shard if layout.zero_stage else links.dp
    if layout.zero_stage == 3 or (layout.zero_stage and not execution.reduces_by_all_reduce):
        yield entry("reduce_scatter", gradients, reductions, shard)
        # HSDP: sums of the groups, over their replicas
        yield entry("all_reduce", gradients // shard.group_size, reductions, links.replica)
    else:
        yield entry("all_reduce", gradients, reductions, links.dp)
    if layout.zero_stage == 3:
        elements = 2 * size
        if layout.engine == "fsdp2" and not of_experts:
            elements = gathered_per_microbatch(job.model, stage, layout.tp, size)
        yield entry("all_gather", execution.gather_bytes * elements, layout.num_microbatches, shard)
    elif layout.zero_stage:
        yield entry("all_gather", execution.gather_bytes * size, 1, shard)


def _shared_size(job: Job, stage: Stage, of_experts: bool) -> int:
    """Elements of a rank's part of a stage that have all of dp x cp for replicas, or fewer."""
    size, layout = rank_parameters(job, stage), job.layout
    if layout.ep == 1:
        return size
    dense = dense_layers_of(job.model, stage)
    experts = count_expert_parameters(job.model, stage.num_layers, dense, layout.tp, layout.ep)
    return experts if of_experts else size - experts


def _fetches(job: Job, stages: Sequence[Stage]) -> Communication:
    """Weights that wait in the node's RAM, for every pass; not over any link between ranks."""
    node, passes = job.hardware.node, 2 * job.layout.num_microbatches
    assert node is not None
    payload = max(fetched_bytes(job, stage) for stage in stages)
    return Communication(
        axis="host",
        op="fetch",
        group_size=1,
        crosses_nodes=False,
        bytes_per_step=passes * payload,
        seconds_per_step=passes * payload / node.host_link_bandwidth,
    )


def _entry(axis: str, op: str, payload_bytes: float, count: int, link: Link) -> Communication:
    """`count` operations."""
    return Communication(
        axis=axis,
        op=op,
        group_size=link.group_size,
        crosses_nodes=link.crosses_nodes,
        bytes_per_step=round(count * sent_bytes(op, payload_bytes, link.group_size)),
        seconds_per_step=count * transfer_s(op, payload_bytes, link),
    )
