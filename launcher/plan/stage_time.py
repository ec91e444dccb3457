"""How long one microbatch takes on one stage: computing and what it waits for on the way."""

from __future__ import annotations

from typing import NamedTuple

from launcher.plan.collectives import (
    Links,
    PassTimes,
    ep_times,
    exposed_s,
    tp_times,
)
from launcher.plan.context_traffic import cp_times
from launcher.plan.encoder import encoder_job
from launcher.plan.execution import Job
from launcher.plan.operator_records import Work
from launcher.plan.operators import block_work, embedding_work, head_work
from launcher.plan.records import Stage
from launcher.plan.stage_state import fetched_s, stage_waits
from launcher.plan.stages import (
    count_dense_layers,
)
from launcher.plan.tensor_traffic import runtime_tp_times
from launcher.plan.work_time import WorkTimes, time_work

Quad = tuple[float, float, float, float]


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
        forward_s, input_s, weight_s, wait_forward_s, wait_backward_s = self
        return BlockTimes(
            count * forward_s, count * input_s, count * weight_s,
            count * wait_forward_s, count * wait_backward_s,
        )  # fmt: skip

    def __add__(self, other: BlockTimes) -> BlockTimes:  # type: ignore[override]
        """One after the other."""
        forward_s, input_s, weight_s, wait_forward_s, wait_backward_s = other
        return BlockTimes(
            self.forward_s + forward_s, self.input_s + input_s, self.weight_s + weight_s,
            self.wait_forward_s + wait_forward_s, self.wait_backward_s + wait_backward_s,
        )  # fmt: skip


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


def list_kernels(job: Job, beside: Kernels | None = None) -> Kernels:
    """Of a job's degrees, sequence and microbatch; its pipeline and sharding have no part in it.

    `beside`: those of a job that differs in ep alone, of which only blocks with experts know.
    """
    work = block_work(job)
    block = dense = Timed(work=work, times=time_work(job, work))
    has_dense = job.model.num_plain > 0
    if beside is not None:
        return beside._replace(block=block, dense=beside.dense if has_dense else block)
    if has_dense:
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


def estimate_parts(
    job: Job,
    links: Links | None = None,
    kernels: Kernels | None = None,
    sent: dict[object, PassTimes] | None = None,
) -> Parts:
    """Times of blocks, embedding and head; without links, communication is left out.

    Who asks for the same kernels over several links has listed them before. `sent` keeps what
    blocks wait for of tp and cp, for one who asks for many degrees of one run.
    """
    kernels = kernels or list_kernels(job)
    sent = {} if sent is None else sent
    block = _block_times(job, links, kernels.block, sent)
    has_dense = kernels.dense is not kernels.block
    embedding = kernels.embedding
    if kernels.encoder:
        side = encoder_job(job)
        embedding += _block_times(side, links, kernels.encoder, {}).times(side.model.num_layers)
    return Parts(
        block=block,
        dense=_block_times(job, links, kernels.dense, sent) if has_dense else block,
        embedding=embedding,
        head=kernels.head,
    )


def _end_times(times: WorkTimes) -> BlockTimes:
    return BlockTimes(
        forward_s=times.forward_s,
        input_s=times.input_gradient_s,
        weight_s=times.weight_gradient_s,
    )


def _block_times(
    job: Job, links: Links | None, timed: Timed, sent: dict[object, PassTimes]
) -> BlockTimes:
    """The mean of blocks that recompute and blocks that do not: each stage has both alike."""
    mode, again = job.execution.recompute, job.execution.recompute_share
    if again == 1:
        return _recomputed(job, links, timed, mode, sent)
    kinds = ((again, mode), (1 - again, "none"))
    found = [
        _recomputed(job, links, timed, recompute, sent).times(share)
        for share, recompute in kinds
        if share > 0
    ]
    return found[0] if len(found) == 1 else found[0] + found[1]


def _recomputed(
    job: Job, links: Links | None, timed: Timed, recompute: str, sent: dict[object, PassTimes]
) -> BlockTimes:
    times = timed.times
    waits = _waits(job, links, timed, recompute, sent) if links else PassTimes()
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


def _waits(
    job: Job, links: Links, timed: Timed, recompute: str, sent: dict[object, PassTimes]
) -> PassTimes:
    layout, repeats = job.layout, 1.0 if recompute == "full" else 0.0
    # Neither tp nor cp knows of experts or of what else a layout has.
    key = (
        layout.tp, layout.cp, layout.micro_batch_size, layout.sequence_parallel, layout.schedule,
        recompute, links.tp, links.cp, timed.times.core_s, timed.times.core_gradient_s,
    )  # fmt: skip
    both = sent.get(key)
    if both is None:
        both = sent[key] = _attention_waits(job, links, timed, recompute)
    ep, times = ep_times(timed.work, job, links), timed.times
    there_s, back_s = ep.forward_s, ep.backward_s + repeats * ep.forward_s
    if job.execution.overlap_ep:
        gradients_s = times.input_gradient_s + times.weight_gradient_s
        there_s = exposed_s(there_s, times.forward_s)
        back_s = exposed_s(back_s, gradients_s + times.again_s(recompute))
    return PassTimes(forward_s=both.forward_s + there_s, backward_s=both.backward_s + back_s)


def _attention_waits(job: Job, links: Links, timed: Timed, recompute: str) -> PassTimes:
    """For tp and cp."""
    tp, cp = _tp_times(job, links, 1, 0, 1.0 if recompute == "full" else 0.0), PassTimes()
    if job.layout.cp > 1:  # what hides it
        times = timed.times
        attention = PassTimes(forward_s=times.core_s, backward_s=times.core_gradient_s)
        cp = cp_times(job, links.cp, attention, recompute)
    if job.model.encoder:  # three branches of a decoder's block are summed, not two
        tp = PassTimes(forward_s=1.5 * tp.forward_s, backward_s=1.5 * tp.backward_s)
    return PassTimes(
        forward_s=tp.forward_s + cp.forward_s, backward_s=tp.backward_s + cp.backward_s
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
        sharded = stage_waits(job, piece, links, total.forward_s, total.input_s + total.weight_s)
        wait_forward += sharded.forward_s
        wait_backward += sharded.backward_s
    fetch_s = fetched_s(job, piece)
    wait_forward += exposed_s(fetch_s, total.forward_s)
    wait_backward += exposed_s(fetch_s, total.input_s + total.weight_s)
    return PartCost(
        forward_s=total.forward_s + wait_forward,
        input_s=total.input_s + wait_backward,
        weight_s=total.weight_s,
        wait_s=wait_forward + wait_backward,
    )


def unit_times(job: Job, parts: Parts, links: Links) -> tuple[Quad, Quad, Quad]:
    """Forward, backward without weight gradients, and these, with what is waited for: of a block,
    of one without experts, of the model's first and of its last end. Their sums are those of
    `part_cost` where nothing is sharded or fetched that a part waits for.
    """
    (block, dense, first, last), ends = parts, _tp_times(job, links, 0, 1, 0.0)
    return (
        (
            block.forward_s + block.wait_forward_s, dense.forward_s + dense.wait_forward_s,
            first.forward_s + (first.wait_forward_s + ends.forward_s),
            last.forward_s + last.wait_forward_s,
        ),
        (
            block.input_s + block.wait_backward_s, dense.input_s + dense.wait_backward_s,
            first.input_s + first.wait_backward_s,
            last.input_s + (last.wait_backward_s + ends.backward_s),
        ),
        (block.weight_s, dense.weight_s, first.weight_s, last.weight_s),
    )  # fmt: skip
