"""Attention over a cut sequence within a window: keys come from the nearest ranks only.

With a sliding window most hops around the ring would carry keys that no query sees. What is seen
lies on a few ranks on either side (`plan/ring_reach.py`); each sends its keys and values straight
to those, and their gradients straight home.
"""

# Shapes: B samples, N query heads, K key/value heads, s tokens of this rank, D width of a head.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from launcher.runtime.collectives import Pending, start_send_and_receive
from launcher.runtime.groups import Axis
from launcher.runtime.parallel.attention_parts import Parts
from launcher.runtime.parallel.block_attention import Part, PartGradients, Whole
from launcher.runtime.parallel.ring import (
    add_gradients,
    add_home,
    empty_sums,
    keep,
    meetings_with,
    widen,
)


def neighbours_attention(
    q_BNsD: Tensor, k_BKsD: Tensor, v_BKsD: Tensor, parts: Parts, reach: int
) -> Tensor:
    """As `ring_attention`, where queries see keys of at most `reach` ranks on either side."""
    return _Neighbours.apply(q_BNsD, k_BKsD, v_BKsD, parts, reach)  # type: ignore[no-any-return, no-untyped-call]


class Visit(NamedTuple):
    """A rank whose keys are here, and the rank where ours are meanwhile; None: beyond the end."""

    source: int | None
    asker: int | None


class _Neighbours(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: Parts, reach: int) -> Tensor:
        mine, whole = torch.stack((k, v)), Whole()
        for visit, keys in _go_round(mine, parts.cut.axis, reach):
            if visit.source is not None:
                for meeting in meetings_with(visit.source, parts):
                    whole.add(parts.forward(meeting, q, *keys), meeting.rows)
        ctx.reach = reach
        return keep(ctx, q, mine, whole, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, mine, out, log_sum = ctx.saved_tensors
        parts, whole = ctx.parts, Part(out, log_sum)
        axis, homeward = parts.cut.axis, None
        visits = _go_round(mine, axis, ctx.reach)
        _, keys = next(visits)
        sums = widen(parts.backward(parts.own(), grad, q, *keys, whole))
        for visit, keys in visits:
            meetings = [] if visit.source is None else meetings_with(visit.source, parts)
            found = [
                (meeting, parts.backward(meeting, grad, q, *keys, whole)) for meeting in meetings
            ]
            of_keys = empty_sums(mine)
            add_gradients(found, sums.q_BNQD, of_keys, is_first=True)
            _take_in(homeward, sums)
            homeward = start_send_and_receive(of_keys, axis, visit.source, visit.asker)
        _take_in(homeward, sums)
        return *(x.to(q.dtype) for x in sums), None, None  # type: ignore[return-value]


def _go_round(mine: Tensor, axis: Axis, reach: int) -> Iterator[tuple[Visit, Tensor]]:
    """Every rank in reach with its keys and values, own first; the next are on their way."""
    visits = [_visit(axis, offset) for offset in _offsets(reach)]
    here: tuple[Visit, Tensor] = (Visit(axis.index, axis.index), mine)
    for visit in visits:
        coming = start_send_and_receive(mine, axis, visit.asker, visit.source)
        yield here
        here = visit, coming.wait()
    yield here


def _offsets(reach: int) -> list[int]:
    """Nearest first, earlier ranks and later ones in turn."""
    return [offset for distance in range(1, reach + 1) for offset in (distance, -distance)]


def _visit(axis: Axis, offset: int) -> Visit:
    source, asker = (
        rank if 0 <= rank < axis.size else None
        for rank in (axis.index - offset, axis.index + offset)
    )
    return Visit(source, asker)


def _take_in(homeward: Pending | None, sums: PartGradients) -> None:
    """Add what another rank found for our keys, if any did."""
    if homeward is not None and (found := homeward.wait()).numel():
        add_home(found, sums)
