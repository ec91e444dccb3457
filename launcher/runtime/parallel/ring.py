"""Attention over a cut sequence whose keys and values travel: around a ring, or gathered at once.

Both compute with the rank's own keys while the first others are on their way (arXiv:2310.01889;
Llama 3, arXiv:2407.21783, sec. 3.3.2, gathers). Nothing but the rank's own keys and values is kept
for backward: they travel again, and gradients of keys travel back in float32.
"""

# Shapes: B samples, N query heads, K key/value heads, s tokens of this rank, D width of a head.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from launcher.runtime.collectives import start_gather, start_pass_on, start_scatter
from launcher.runtime.parallel.attention_parts import Meeting, Parts
from launcher.runtime.parallel.block_attention import Part, PartGradients, Whole


def ring_attention(q_BNsD: Tensor, k_BKsD: Tensor, v_BKsD: Tensor, parts: Parts) -> Tensor:
    """Keys and values pass from rank to rank, one rank's at a time, beside the computing."""
    return _Ring.apply(q_BNsD, k_BKsD, v_BKsD, parts)  # type: ignore[no-any-return, no-untyped-call]


def gathered_attention(q_BNsD: Tensor, k_BKsD: Tensor, v_BKsD: Tensor, parts: Parts) -> Tensor:
    """All keys and values come in one collective, beside the attention to the rank's own."""
    return _Gathered.apply(q_BNsD, k_BKsD, v_BKsD, parts)  # type: ignore[no-any-return, no-untyped-call]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: Parts) -> Tensor:
        mine, whole = torch.stack((k, v)), Whole()
        for source, (keys, values) in _pass_around(mine, parts):
            for meeting in meetings_with(source, parts):
                whole.add(parts.forward(meeting, q, keys, values), meeting.rows)
        return keep(ctx, q, mine, whole, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, mine, out, log_sum = ctx.saved_tensors
        parts: Parts = ctx.parts
        whole, coming = Part(out, log_sum), None
        visits = _pass_around(mine, parts)
        _, (keys, values) = next(visits)
        sums = widen(parts.backward(parts.own(), grad, q, keys, values, whole))
        for source, (keys, values) in visits:
            found = [
                (meeting, parts.backward(meeting, grad, q, keys, values, whole))
                for meeting in parts.with_rank(source)
            ]
            # The gradients of these keys so far: from the rank that has had them before.
            of_keys = empty_sums(mine) if coming is None else coming.wait()
            add_gradients(found, sums.q_BNQD, of_keys, is_first=coming is None)
            coming = start_pass_on(of_keys, parts.cut.axis)
        assert coming is not None
        add_home(coming.wait(), sums)  # the last step brings them home
        return *(x.to(q.dtype) for x in sums), None  # type: ignore[return-value]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: Parts) -> Tensor:
        mine, whole = torch.stack((k, v)), Whole()
        coming = start_gather(mine, parts.cut.axis)
        own = parts.own()
        whole.add(parts.forward(own, q, *mine), own.rows)
        everyone = coming.wait()
        for source in _others(parts):
            for meeting in parts.with_rank(source):
                whole.add(parts.forward(meeting, q, *everyone[source]), meeting.rows)
        return keep(ctx, q, mine, whole, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, mine, out, log_sum = ctx.saved_tensors
        parts: Parts = ctx.parts
        whole, axis = Part(out, log_sum), parts.cut.axis
        coming = start_gather(mine, axis)
        own = parts.backward(parts.own(), grad, q, *mine, whole)
        everyone = coming.wait()
        of_all = empty_sums(everyone)
        of_all[axis.index, 0], of_all[axis.index, 1] = own.k_BKTD, own.v_BKTD
        of_q = own.q_BNQD.to(of_all.dtype)
        del coming, own
        for source in _others(parts):
            found = [
                (meeting, parts.backward(meeting, grad, q, *everyone[source], whole))
                for meeting in parts.with_rank(source)
            ]
            add_gradients(found, of_q, of_all[source], is_first=True)
        del everyone
        of_k, of_v = start_scatter(of_all, axis).wait()
        return of_q.to(q.dtype), of_k.to(q.dtype), of_v.to(q.dtype), None


def _others(parts: Parts) -> list[int]:
    return [rank for rank in range(parts.cut.axis.size) if rank != parts.cut.axis.index]


def _pass_around(mine: Tensor, parts: Parts) -> Iterator[tuple[int, Tensor]]:
    """Every rank's keys and values, own first; the next are on their way meanwhile."""
    axis, here = parts.cut.axis, mine
    for step in range(axis.size):
        coming = start_pass_on(here, axis) if step < axis.size - 1 else None
        yield (axis.index - step) % axis.size, here
        if coming is not None:
            here = coming.wait()


def meetings_with(source: int, parts: Parts) -> list[Meeting]:
    """Which of the rank's queries see keys of that rank."""
    return [parts.own()] if source == parts.cut.axis.index else parts.with_rank(source)


def keep(ctx: Any, q: Tensor, mine: Tensor, whole: Whole, parts: Parts) -> Tensor:
    """End of a forward pass: what backward needs, and the result."""
    out, log_sum = whole.finish(q.dtype)
    ctx.parts = parts
    ctx.save_for_backward(q, mine, out, log_sum)
    return out


def empty_sums(x: Tensor) -> Tensor:
    """For sums of gradients, at least in float32; nothing is in them yet."""
    return torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def widen(own: PartGradients) -> PartGradients:
    """Sums of a rank's gradients, which begin with its own meeting."""
    wide = torch.promote_types(own.q_BNQD.dtype, torch.float32)
    return PartGradients(*(gradient.to(wide) for gradient in own))


def add_gradients(
    found: list[tuple[Meeting, PartGradients]], of_q: Tensor, of_keys: Tensor, *, is_first: bool
) -> None:
    """Add where a meeting's queries and keys lie, and let go of what is added.

    is_first: nothing is in `of_keys` yet. It is written then, and zero where no meeting has keys.
    """
    if is_first and len(found) != 1:
        of_keys.zero_()
        is_first = False
    while found:
        meeting, gradients = found.pop()
        of_q[:, :, meeting.rows] += gradients.q_BNQD
        keys = meeting.keys
        for sums, gradient in zip(of_keys, gradients[1:], strict=True):
            if is_first:
                sums[:, :, : keys.start] = 0
                sums[:, :, keys.stop :] = 0
                sums[:, :, keys] = gradient
            else:
                sums[:, :, keys] += gradient


def add_home(of_keys: Tensor, sums: PartGradients) -> None:
    """What other ranks have found for this rank's keys and values."""
    sums.k_BKTD.add_(of_keys[0])
    sums.v_BKTD.add_(of_keys[1])
