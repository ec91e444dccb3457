"""What context parallelism sends, and what of it shows beside the attention.

Counted as `runtime/parallel/{ring,neighbours,context}.py` work: ring and all_gather send a rank's
keys and values forward and again backward, and gradients of them back, in float32; Ulysses sends
queries, keys and values one way and results the other, and the same of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.plan.collectives import PassTimes, exposed_s
from launcher.plan.execution import Job, hides_transfers
from launcher.plan.links import Link, sent_bytes, transfer_s
from launcher.plan.operator_records import Size, size_of
from launcher.plan.operators_attention import keys_seen
from launcher.plan.records import Communication, Stage
from launcher.plan.ring_reach import ring_hops, ring_reach


class Message(NamedTuple):
    """One kind of message of one block, as the busiest rank sends it."""

    op: str
    payload_bytes: int
    """Of the whole tensor, as `links.sent_bytes` takes it."""
    forward: int = 0
    backward: int = 0
    again: Sequence[str] = ("selective", "full")
    """Kinds of recomputation that repeat its forward part. Of the attention core alone they end
    before Ulysses' results, which the core does not keep."""


def list_messages(job: Job) -> tuple[Message, ...]:
    """What one block sends per microbatch; nothing where the sequence is not cut."""
    if job.layout.cp == 1:
        return ()
    size, element, cp = size_of(job), job.execution.element_bytes, job.layout.cp
    if job.execution.cp_mode == "ulysses":
        results = size.queries * size.tokens * element
        there = results + 2 * dealt_keys(job, size) * size.tokens * element
        return (
            Message(op="all_to_all", payload_bytes=there, forward=1, backward=1),
            Message(op="all_to_all", payload_bytes=results, forward=1, backward=1, again=("full",)),
        )
    keys = keys_bytes(job)
    gradients = keys // element * gradient_element(job)
    if job.execution.cp_mode == "all_gather":
        return (
            Message(op="all_gather", payload_bytes=cp * keys, forward=1, backward=1),
            Message(op="reduce_scatter", payload_bytes=cp * gradients, backward=1),
        )
    hops = hops_of(job)
    return (
        Message(op="send_recv", payload_bytes=keys, forward=hops, backward=hops),
        Message(op="send_recv", payload_bytes=gradients, backward=hops),
    )


def keys_bytes(job: Job) -> int:
    """The keys and values of one rank and microbatch."""
    size = size_of(job)
    return 2 * size.read_keys * size.tokens * job.execution.element_bytes


def hops_of(job: Job) -> int:
    """How many other ranks' keys come to a rank of a ring."""
    return ring_hops(job.layout.cp, job.layout.sequence_length, job.model.sliding_window)


def sees_whole_sequences(job: Job) -> bool:
    """Whether attention on one rank has all tokens of a sequence, and a mask over all their pairs;
    keys that come in parts have a mask for each (`context_memory.py`).
    """
    return job.layout.cp == 1 or job.execution.cp_mode == "ulysses"


def turns_back(job: Job) -> bool:
    """Whether keys go to neighbours on both sides instead of around a ring."""
    layout, window = job.layout, job.model.sliding_window
    return ring_reach(layout.cp, layout.sequence_length, window) is not None


def dealt_keys(job: Job, size: Size) -> int:
    """Width of the keys that Ulysses deals out: a head at least for every rank."""
    return max(size.read_keys, job.layout.cp * job.model.head_size)


def gradient_element(job: Job) -> int:
    """Of gradients of keys on their way: this launcher's workers add them up in float32."""
    execution = job.execution
    return execution.element_bytes if execution.row_chunks is None else 4


def cp_traffic(job: Job, stages: Sequence[Stage], link: Link) -> list[Communication]:
    """Of one step, the same operations together."""
    blocks = max(stage.num_layers for stage in stages)
    recomputed = round(blocks * job.execution.recompute_share)
    num_bytes: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for message in list_messages(job):
        op, payload = message.op, message.payload_bytes
        again = recomputed if _is_sent_again(job, message, job.execution.recompute) else 0
        count = (blocks + again) * message.forward + blocks * message.backward
        count *= job.layout.num_microbatches
        sent = count * sent_bytes(op, payload, link.group_size)
        num_bytes[op] = num_bytes.get(op, 0.0) + sent
        seconds[op] = seconds.get(op, 0.0) + count * transfer_s(op, payload, link)
    return [
        Communication(
            axis="cp",
            op=op,
            group_size=link.group_size,
            crosses_nodes=link.crosses_nodes,
            bytes_per_step=round(num_bytes[op]),
            seconds_per_step=seconds[op],
        )
        for op in num_bytes
    ]


def _is_sent_again(job: Job, message: Message, recompute: str) -> bool:
    """Other programs keep the keys of other ranks when they compute the core again."""
    is_ours = job.execution.row_chunks is not None
    return recompute in (message.again if is_ours else ("full",))


def cp_times(job: Job, link: Link, attention_s: PassTimes, recompute: str) -> PassTimes:
    """What a block waits for; `attention_s` is how long its attention takes."""
    if job.layout.cp == 1:
        return PassTimes()
    messages = list_messages(job)
    if job.execution.cp_mode == "ulysses":  # nothing to compute before all is there
        repeated = [m for m in messages if _is_sent_again(job, m, recompute)]
        once_s, again_s = (sum(_seconds(m, link) for m in which) for which in (messages, repeated))
        return PassTimes(forward_s=once_s, backward_s=once_s + again_s)
    windows_s = attention_s if hides_transfers(job.hardware) else PassTimes()
    times = _meeting_times(job, link, messages, windows_s)
    again_s = times.forward_s if _is_sent_again(job, messages[0], recompute) else 0.0
    return PassTimes(forward_s=times.forward_s, backward_s=times.backward_s + again_s)


def _meeting_times(
    job: Job, link: Link, messages: Sequence[Message], attention_s: PassTimes
) -> PassTimes:
    """Where queries stay and keys come to them."""
    own = _own_share(job)
    keys_s, gradients_s = (_seconds(message, link) for message in messages)
    if job.execution.cp_mode == "all_gather":
        if job.execution.row_chunks is None:  # this launcher's workers scatter at the end
            gradients_s = exposed_s(gradients_s, (1 - own) * attention_s.backward_s)
        return PassTimes(
            forward_s=exposed_s(keys_s, own * attention_s.forward_s),
            backward_s=exposed_s(keys_s, own * attention_s.backward_s) + gradients_s,
        )
    return _ring_times(hops_of(job), own, keys_s, gradients_s, attention_s)


def _ring_times(
    hops: int, own: float, keys_s: float, gradients_s: float, attention_s: PassTimes
) -> PassTimes:
    """Hop by hop: keys come beside the attention to those before them, gradients leave behind it.

    Nothing is left to compute beside the last gradients.
    """
    if hops == 0:
        return PassTimes()
    rest, between = (1 - own) / hops, max(0, hops - 2)
    forward_s = exposed_s(keys_s, own * attention_s.forward_s)
    forward_s += (hops - 1) * exposed_s(keys_s, rest * attention_s.forward_s)
    # Beside the first: keys. Beside the next: keys. Then both, and beside the last: gradients.
    window_s = rest * attention_s.backward_s
    backward_s = gradients_s + exposed_s(keys_s, own * attention_s.backward_s)
    if hops > 1:
        backward_s += exposed_s(keys_s, window_s) + exposed_s(gradients_s, window_s)
    backward_s += between * exposed_s(keys_s + gradients_s, window_s)
    return PassTimes(forward_s=forward_s, backward_s=backward_s)


def _own_share(job: Job) -> float:
    """Of the attention, what needs no other rank's keys: an equal part, or most of a window."""
    model, length, cp = job.model, job.layout.sequence_length, job.layout.cp
    within = keys_seen(model, length // (2 * cp)) / keys_seen(model, length)
    return max(1 / cp, within)


def _seconds(message: Message, link: Link) -> float:
    return transfer_s(message.op, message.payload_bytes, link)
