"""A copy in host memory of what this rank has to save: every byte of the job on one rank only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.checkpoint.boxes import Box, Shape, flat_range_boxes
from launcher.checkpoint.files import Entry
from launcher.runtime.state import StatePiece


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a rank saves of one of its pieces."""

    tensor: str
    """`<kind>/<full logical name>`."""
    full_shape: Shape
    box: Box
    values: Tensor
    """View on the live storage, of shape `box.sizes`."""

    @property
    def key(self) -> str:
        """Name inside the file: the tensor and where the box begins."""
        return f"{self.tensor}@{','.join(map(str, self.box.offsets))}"

    @property
    def entry(self) -> Entry:
        """Of the file."""
        return Entry(key=self.key, shape=self.box.sizes)


class Arena:
    """Host memory for one snapshot, kept from save to save; page-locked beside a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0)

    def reserve(self, size: int) -> None:
        """Have room for so many float32 values, in memory that is really there."""
        if self._memory.numel() < size:
            self._memory = torch.empty(0)  # let go of the old memory first
            pinned = self._device.type == "cuda"
            self._memory = torch.empty(size, pin_memory=pinned).zero_()

    def copy(self, parts: Sequence[Part]) -> memoryview:
        """All values one after the other, as they will lie in the file.

        Returns when the copy is complete: training may then change the state. The memory is valid
        until the next copy.
        """
        size = sum(part.values.numel() for part in parts)
        self.reserve(size)
        position = 0
        for part in parts:
            count = part.values.numel()
            target = self._memory[position : position + count].view(part.values.shape)
            target.copy_(part.values, non_blocking=True)
            position += count
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return memoryview(self._memory[:size].numpy()).cast("B")


def parts_to_save(pieces: Sequence[StatePiece]) -> list[Part]:
    """The share of these pieces that this rank saves.

    Pieces that several ranks hold alike are laid end to end and cut into equal flat ranges, one
    for each of them: writing is spread evenly, and few pieces are cut.
    """
    owned = [piece for piece in pieces if piece.is_owner]
    parts: list[Part] = []
    for num_copies in sorted({piece.num_copies for piece in owned}):
        parts += _share([piece for piece in owned if piece.num_copies == num_copies])
    return parts


def _share(pieces: Sequence[StatePiece]) -> Iterator[Part]:
    total = sum(piece.box.num_elements for piece in pieces)
    first = total * pieces[0].copy // pieces[0].num_copies
    end = total * (pieces[0].copy + 1) // pieces[0].num_copies
    position = 0
    for piece in pieces:
        size = piece.box.num_elements
        start, stop = max(first - position, 0), min(end - position, size)
        position += size
        for box in flat_range_boxes(piece.box.sizes, start, stop):
            yield Part(
                tensor=f"{piece.kind}/{piece.name}",
                full_shape=piece.full_shape,
                box=box.moved(piece.box.offsets),
                values=piece.tensor[box.slices()],
            )
