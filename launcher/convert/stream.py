"""Tensors from one place to another, a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from launcher.checkpoint.boxes import Shape
from launcher.checkpoint.source import TensorSource
from launcher.convert.numbers import Array

_PIECE_BYTES = 2**20
"""Of float32 at once; more would not be faster."""
_TRANSPOSED_SHARE = 8
"""A tensor whose rows are columns in the file is read in at most so many pieces.

Each piece visits every row of the file; fewer visits cost memory, an eighth of the tensor.
"""


def read_pieces(source: TensorSource, name: str, is_transposed: bool = False) -> Iterator[Array]:
    """A tensor of ours in float32, a few rows after the other."""
    shape = source.shape(name)
    for start, count in _runs(shape, is_transposed):
        yield source.read(name, (start, *[0] * (len(shape) - 1)), (count, *shape[1:]))


def read_joined(source: TensorSource, parts: Sequence[str], is_transposed: bool) -> Iterator[Array]:
    """Tensors of ours one below the other, a few rows after the other; transposed if need be."""
    if not is_transposed:
        for part in parts:
            yield from read_pieces(source, part)
        return
    shapes = [source.shape(part) for part in parts]
    joined = (shapes[0][1], sum(rows for rows, _ in shapes))
    for start, count in _runs(joined, is_transposed=True):
        pieces = [
            source.read(part, (0, start), (rows, count)).T
            for part, (rows, _) in zip(parts, shapes, strict=True)
        ]
        yield pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


def _runs(shape: Shape, is_transposed: bool) -> Iterator[tuple[int, int]]:
    """First row and number of rows of every piece."""
    at_once = max(1, _PIECE_BYTES // max(1, 4 * math.prod(shape[1:])))
    if is_transposed:
        at_once = max(at_once, -(-shape[0] // _TRANSPOSED_SHARE))
    for start in range(0, shape[0], at_once):
        yield start, min(at_once, shape[0] - start)
