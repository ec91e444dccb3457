"""Which tokens of every sequence a context-parallel rank has."""

# Shapes: B samples, S tokens of the whole sequence, s = S / cp of this rank.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launcher.runtime.groups import Axis

if TYPE_CHECKING:
    from launcher.runtime.model.context import ForwardContext


@dataclass(frozen=True, kw_only=True)
class SequenceCut:
    """The part of the sequence on one rank: one or two runs of neighbouring tokens."""

    axis: Axis
    """cp."""
    length: int
    """Tokens of the whole sequence."""
    chunks: tuple[int, ...]
    """Which of `num_chunks` equal chunks are here, in the order in which they lie here."""
    num_chunks: int
    places_s: Tensor
    """Where the rank's tokens stand in the sequence."""
    is_gathered: bool
    """Attention puts the sequence together again (Ulysses)."""

    def take(self, x: Tensor) -> Tensor:
        """The rank's part of something that has the whole sequence as its second dimension."""
        return x.index_select(1, self.places_s)

    def narrow(self, context: ForwardContext) -> ForwardContext:
        """A microbatch as this rank sees it. Documents stay whole: keys come from all ranks.

        Losses are averaged over cp, too: where labels are left out, each rank divides the sum of
        its own by its share of their number.
        """
        labels, count = context.labels_BS, context.num_labels
        return replace(
            context,
            labels_BS=None if labels is None else self.take(labels),
            num_labels=None if count is None else count / self.axis.size,
        )


def cut_sequence(mode: str, axis: Axis, length: int, device: torch.device) -> SequenceCut | None:
    """The rank's part; None where it has the whole sequence.

    Where a rank's queries meet the keys of others (ring, all_gather), rank i of n has the chunks i
    and 2n - 1 - i of 2n: one that sees little and one that sees much, together as much on every
    rank (the zig-zag of Llama 3, arXiv:2407.21783, sec. 3.3.2). Ulysses puts sequences together
    again: rank i has the i-th of n.
    """
    if axis.size == 1:
        return None
    index, size = axis.index, axis.size
    chunks = (index,) if mode == "ulysses" else (index, 2 * size - 1 - index)
    num_chunks = len(chunks) * size
    assert length % num_chunks == 0, f"{length} tokens in {num_chunks} chunks"
    step = length // num_chunks
    places = torch.cat([torch.arange(chunk * step, (chunk + 1) * step) for chunk in chunks])
    return SequenceCut(
        axis=axis, length=length, chunks=chunks, num_chunks=num_chunks,
        places_s=places.to(device), is_gathered=mode == "ulysses",
    )  # fmt: skip
