"""What attention over a cut sequence needs for a moment: other ranks' keys, their gradients.

Counted as `runtime/parallel/{ring,neighbours,context}.py` work, whose tests measure it.
"""

from __future__ import annotations

from launcher.plan.context_traffic import (
    dealt_keys,
    gradient_element,
    hops_of,
    keys_bytes,
    turns_back,
)
from launcher.plan.execution import Job
from launcher.plan.operator_records import Size, size_of


def context_bytes(job: Job) -> int:
    """Beside what is kept of the block; 0 where the sequence is not cut."""
    if job.layout.cp == 1:
        return 0
    if job.execution.row_chunks is None:
        return _of_other_programs(job)
    size, mode = size_of(job), job.execution.cp_mode
    if mode == "ulysses":
        return _dealt_bytes(job, size)
    return (_gathered_bytes if mode == "all_gather" else _ring_bytes)(job, size)


def attention_temporary_bytes(job: Job) -> int:
    """In the backward pass of attention: gradients of the residual and of the core's output too."""
    size = size_of(job)
    outer = size.tokens * (job.model.hidden_size + size.queries) * job.execution.element_bytes
    return outer + context_bytes(job)


def _of_other_programs(job: Job) -> int:
    """Of one rank while those of the next come, or of all; dealt out they replace its own."""
    if job.execution.cp_mode == "ulysses":
        return 0
    shares = job.layout.cp if job.execution.cp_mode == "all_gather" else 2
    return shares * keys_bytes(job)


def _ring_bytes(job: Job, size: Size) -> int:
    """Keys at hand and those on their way; sums of gradients of the queries and of the own keys,
    and others' gradients as they come and go; what the part at hand adds to all of them.
    """
    element, keys, hops = job.execution.element_bytes, keys_bytes(job), hops_of(job)
    queries = size.tokens * size.queries * element
    wide = gradient_element(job) / element
    # A part is of all queries and half of the keys, or the other way round.
    part, mask = max(queries + keys // 2, queries // 2 + keys), _mask_bytes(job, size, 0.5)
    coming, going = min(2, hops), min(2, hops)
    if turns_back(job):  # gradients go home by themselves
        coming, going = (1, 3) if hops == 2 else (min(2, hops), min(3, hops))
    if hops == 1:  # the first sums for others' keys are made once the mask has gone
        mask, going = round(max(mask, wide * keys)), 0
    met = coming * keys + part + mask + wide * (queries + (1 + going) * keys)
    return round(max(keys + _own_bytes(job, size), met))


def _gathered_bytes(job: Job, size: Size) -> int:
    """All keys and gradients of all of them, beside what the part at hand adds; then gradients as
    they go home.
    """
    cp, element, keys = job.layout.cp, job.execution.element_bytes, keys_bytes(job)
    queries = size.tokens * size.queries * element
    wide = gradient_element(job) / element
    part = max(queries + keys // 2, queries // 2 + keys) + _mask_bytes(job, size, 0.5)
    met = wide * queries + (1 + wide) * cp * keys + part
    going = wide * (queries + 2 * cp * keys)
    return round(max(cp * keys + _own_bytes(job, size), met, going))


def _own_bytes(job: Job, size: Size) -> float:
    """The part of the rank's own keys: through its mask, then as the beginning of all sums."""
    element, keys = job.execution.element_bytes, keys_bytes(job)
    queries = size.tokens * size.queries * element
    wide = gradient_element(job) / element
    sums = keys if wide == 1 else wide * (queries + keys) + keys
    return queries + keys + max(_mask_bytes(job, size, 1), sums)


def _dealt_bytes(job: Job, size: Size) -> int:
    """Gradients of what was dealt out: as they are, put together, and on their way back."""
    queries = size.tokens * size.queries
    together = queries + 2 * size.tokens * dealt_keys(job, size)
    phases = (2 * together - queries, together + queries)
    return max(phases) * job.execution.element_bytes


def _mask_bytes(job: Job, size: Size, share: float) -> int:
    """Within a window or documents: of one part, the rank's tokens by those that it meets.

    `share` is that of the met to the rank's own.
    """
    execution = job.execution
    if not (execution.document_masks or execution.window_masks):
        return 0
    mine = size.sequence // job.layout.cp
    samples = size.batch if execution.document_masks else 1
    return round(samples * mine * share * mine * execution.element_bytes)
