"""What travels in one step: bytes and seconds per axis, from the layout and the links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.config.schema import Model, Run
from launcher.plan.costs import sum_sizes, tied_copy
from launcher.plan.links import Link, find_link, sent_bytes, transfer_s
from launcher.plan.memory import build_shape, gradients_are_whole
from launcher.plan.memory_fsdp2 import gathered_per_microbatch
from launcher.plan.mesh import Mesh
from launcher.plan.records import Communication, Layout, Stage
from launcher.plan.stages import count_stage_parameters
from launcher.plan.tensor_traffic import count_collectives, partial_gradients
from launcher.plan.work import ELEMENT_BYTES, Shape, boundary_bytes, hidden_bytes

GRADIENT_BYTES = 4
"""Gradients are reduced over dp in float32."""

GRADIENT_OP = {0: "all_reduce", 1: "all_reduce", 2: "all_reduce", 3: "reduce_scatter"}
"""How each ZeRO stage reduces: DeepSpeed 0.19.8 all-reduces buckets below stage 3 and lets every
rank keep its part (`use_multi_rank_bucket_allreduce`), and so does our stage 0. FSDP2 scatters."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """The link of every axis that communicates."""

    tp: Link
    pp: Link
    dp: Link

    @property
    def embedding(self) -> Link:
        """Between the first and the last stage."""
        return replace(self.pp, group_size=2)


def find_links(run: Run, layout: Layout, mesh: Mesh) -> Links:
    """Where each axis' groups sit on the nodes."""
    tp, pp, dp = (
        find_link(mesh, axis, run.hardware, layout.gpus_per_node) for axis in ("tp", "pp", "dp")
    )
    return Links(tp=tp, pp=pp, dp=dp)


def list_communication(
    run: Run, layout: Layout, stages: Sequence[Stage], links: Links
) -> tuple[Communication, ...]:
    """Everything that the busiest rank sends in one step, axis by axis; silent axes are absent."""
    shape = build_shape(run, layout)
    entries: list[Communication] = []
    if layout.tp > 1:
        entries += _tensor_parallel(run, layout, stages, links.tp)
    if layout.pp > 1:
        # With chunks, the outer stages are neighbours too, or one in the middle talks both ways.
        directions = 2 if layout.pp > 2 or layout.vpp > 1 else 1
        payload = boundary_bytes(run.model, shape)
        count = directions * layout.num_microbatches * layout.vpp
        entries.append(_entry("pp", "send_recv", payload, count, links.pp))
    if layout.dp > 1:
        entries += _data_parallel(run, layout, stages, links.dp)
    if layout.pp > 1 and run.model.tie_embeddings:
        rows = layout.dp if layout.engine == "fsdp2" else 1  # which sums the rows of each dp rank
        payload = GRADIENT_BYTES * sum_sizes(tied_copy(run.model), layout.tp) // rows
        entries.append(_entry("embedding", "all_reduce", payload, 1, links.embedding))
    return tuple(entries)


def _tensor_parallel(
    run: Run, layout: Layout, stages: Sequence[Stage], link: Link
) -> list[Communication]:
    """The activations of all microbatches, and the gradients that every rank has a part of."""
    payload, count = hidden_bytes(run.model, build_shape(run, layout)), layout.num_microbatches
    passes = [count_collectives(stage, layout.recompute, False) for stage in stages]
    sums = count * max(each.sums for each in passes)
    if not layout.sequence_parallel:
        return [_entry("tp", "all_reduce", payload, sums, link)]
    wholes = count * max(each.wholes for each in passes)
    return [
        _entry("tp", "all_gather", payload, wholes, link),
        _entry("tp", "reduce_scatter", payload, sums, link),
        sum_of_partial_gradients(run, layout, stages, link),
    ]


def sum_of_partial_gradients(
    run: Run, layout: Layout, stages: Sequence[Stage], link: Link
) -> Communication:
    """Once per step in one buffer, or one by one in every backward that shards them at once."""
    number, elements = partial_gradients(run.model, stages)
    if gradients_are_whole(layout) or layout.engine == "fsdp2":
        return _entry("tp", "all_reduce", GRADIENT_BYTES * elements, 1, link)
    payload = GRADIENT_BYTES * elements // number
    return _entry("tp", "all_reduce", payload, number * layout.num_microbatches, link)


def _data_parallel(
    run: Run, layout: Layout, stages: Sequence[Stage], link: Link
) -> list[Communication]:
    """Gradients once, or per microbatch where they are sharded; weights after the step or before
    every use.
    """
    size = max(
        count_stage_parameters(
            run.model, stage.num_layers, stage.is_first, stage.is_last, layout.tp
        )
        for stage in stages
    )
    reductions = 1 if gradients_are_whole(layout) else layout.num_microbatches
    op = GRADIENT_OP[3 if layout.engine == "fsdp2" else layout.zero_stage]
    entries = [_entry("dp", op, GRADIENT_BYTES * size, reductions, link)]
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * layout.num_microbatches}[layout.zero_stage]
    if layout.engine == "fsdp2" and layout.zero_stage == 3:
        gathers = layout.num_microbatches
        size = max(gathered_per_microbatch(run.model, stage, layout.tp) for stage in stages)
    if gathers:
        payload = ELEMENT_BYTES[run.precision.compute] * size
        entries.append(_entry("dp", "all_gather", payload, gathers, link))
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


def p2p_s(model: Model, shape: Shape, links: Links) -> float:
    """Seconds from the end of a pass on one stage to the arrival of its result on the next."""
    return transfer_s("send_recv", boundary_bytes(model, shape), links.pp)
