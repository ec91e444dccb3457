"""Boxes of a tensor: cutting flat ranges into them, and where two of them meet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangular part of a tensor."""

    offsets: Shape
    """First index along every dimension."""
    sizes: Shape

    @property
    def num_elements(self) -> int:
        """Elements inside; 1 for a scalar."""
        return math.prod(self.sizes)

    def slices(self, within: Shape | None = None) -> tuple[slice, ...]:
        """Index of this box in the whole tensor, or in an array whose first element is `within`."""
        origin = within or (0,) * len(self.offsets)
        return tuple(
            slice(offset - start, offset - start + size)
            for offset, size, start in zip(self.offsets, self.sizes, origin, strict=True)
        )

    def moved(self, by: Shape) -> Box:
        """The same box seen from an origin that lies `by` before."""
        offsets = tuple(offset + step for offset, step in zip(self.offsets, by, strict=True))
        return Box(offsets=offsets, sizes=self.sizes)


def whole(shape: Shape) -> Box:
    """The box of a whole tensor."""
    return Box(offsets=(0,) * len(shape), sizes=shape)


def intersect(one: Box, other: Box) -> Box | None:
    """What both hold; None where they do not meet."""
    starts = tuple(map(max, one.offsets, other.offsets))
    ends = tuple(
        min(a + m, b + n)
        for a, m, b, n in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    )
    if any(start >= end for start, end in zip(starts, ends, strict=True)):
        return None
    sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return Box(offsets=starts, sizes=sizes)


def flat_range_boxes(shape: Shape, start: int, stop: int) -> Iterator[Box]:
    """Boxes that together are elements [start, stop) of a row-major tensor, in their order.

    At most 2 n - 1 boxes for n dimensions: a matrix gives the end of a row, whole rows and the
    beginning of a row.

    flat_range_boxes((4, 3), 2, 10) -> rows 0:1 columns 2:3, rows 1:3, row 3 column 0:1
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield Box(offsets=(start,) * len(shape), sizes=(stop - start,) * len(shape))
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows are [first, last)
    if first > last:  # inside one row
        yield from _in_row(shape, last, start, stop)
        return
    if start < first * row:
        yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        rest = (0,) * (len(shape) - 1)
        yield Box(offsets=(first, *rest), sizes=(last - first, *shape[1:]))
    if last * row < stop:
        yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: Shape, index: int, start: int, stop: int) -> Iterator[Box]:
    row = math.prod(shape[1:])
    for box in flat_range_boxes(shape[1:], start - index * row, stop - index * row):
        yield Box(offsets=(index, *box.offsets), sizes=(1, *box.sizes))
