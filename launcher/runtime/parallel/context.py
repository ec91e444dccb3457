"""How a stage's attention sees a sequence that is cut over cp: `parallelism.cp_mode`."""

# Shapes: B samples, S tokens of the sequence, s of this rank, N query heads, K key/value heads,
# D width of a head; n ranks.

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from launcher.plan.ring_reach import ring_reach
from launcher.runtime.collectives import exchange
from launcher.runtime.groups import Axis
from launcher.runtime.outside_graphs import outside_graphs
from launcher.runtime.parallel.attention_parts import Parts
from launcher.runtime.parallel.neighbours import neighbours_attention
from launcher.runtime.parallel.ring import gathered_attention, ring_attention
from launcher.runtime.parallel.sequence_cut import SequenceCut

if TYPE_CHECKING:
    from launcher.runtime.model.attention import Mix, Packed


def apply_context_parallel(
    module: nn.Module, mode: str, cut: SequenceCut | None, window: int | None
) -> None:
    """Give every attention core of a stage the way to keys that are elsewhere."""
    if cut is None:
        return
    if window is not None and window >= cut.length:
        window = None
    for block in module.layers.values():  # type: ignore[operator]
        core = block.attention.core
        core.mix = meet(core.mix, mode, cut, window)


def meet(mix: Mix, mode: str, cut: SequenceCut, window: int | None) -> Mix:
    """The way of a mode; `mix` knows queries that have all their keys at hand."""
    if mode == "ulysses":
        return Ulysses(mix, cut.axis)
    return MeetKeys(_attention(mode, cut, window), cut, window)


Attention = Callable[[Tensor, Tensor, Tensor, Parts], Tensor]
"""Queries [B, N, s, D], keys and values [B, K, s, D] of this rank in, [B, N, s, D] out."""


def _attention(mode: str, cut: SequenceCut, window: int | None) -> Attention:
    if mode == "all_gather":
        return gathered_attention
    reach = ring_reach(cut.axis.size, cut.length, window)
    return ring_attention if reach is None else partial(neighbours_attention, reach=reach)


class MeetKeys:
    """Queries stay, keys and values come to them."""

    def __init__(self, attention: Attention, cut: SequenceCut, window: int | None) -> None:
        self._attention, self._cut, self._window = attention, cut, window

    @outside_graphs
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, packed: Packed | None
    ) -> Tensor:
        """[B, s, N or K, D] in, [B, s, N, D] out."""
        assert seed is None, "parts of a softmax have no dropout"
        parts = Parts(
            cut=self._cut,
            window=self._window,
            documents_BS=None if packed is None else packed.documents_BS,
        )
        return self._attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), parts
        ).transpose(1, 2)


class Ulysses:
    """Sequences come together where heads go apart, and back (arXiv:2309.14509)."""

    def __init__(self, mix: Mix, axis: Axis) -> None:
        self._mix, self._axis = mix, axis

    @outside_graphs
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, packed: Packed | None
    ) -> Tensor:
        """[B, s, N or K, D] in, [B, s, N, D] out."""
        size = self._axis.size
        if k.shape[2] < size:  # a head for each rank: neighbours get the same
            k, v = (x.repeat_interleave(size // k.shape[2], dim=2) for x in (k, v))
        widths = [x.shape[2] // size for x in (q, k, v)]
        # For every rank its queries, keys and values.
        parts = torch.cat([x.unflatten(2, (size, -1)).movedim(2, 0) for x in (q, k, v)], dim=3)
        del q, k, v
        whole = _Gather.apply(parts, self._axis)  # type: ignore[no-untyped-call]
        del parts
        out = self._mix(*whole.split(widths, dim=2), seed, packed)
        received = _Part.apply(out, self._axis)  # type: ignore[no-untyped-call]
        return received.movedim(0, 2).flatten(2, 3)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    """[n, B, s, heads / n, D], for every rank its heads, into [B, S, heads / n, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _gather_tokens(x, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _part_tokens(grad, ctx.axis), None


class _Part(torch.autograd.Function):
    """The way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _part_tokens(x, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather_tokens(grad, ctx.axis), None


def _gather_tokens(parts: Tensor, axis: Axis) -> Tensor:
    return exchange(parts, axis).movedim(0, 1).flatten(1, 2)


def _part_tokens(x: Tensor, axis: Axis) -> Tensor:
    return exchange(x.unflatten(1, (axis.size, -1)).movedim(1, 0), axis)
