"""Which tensors of two checkpoints differ, and by how much, whatever layouts wrote them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from launcher.checkpoint.boxes import Box, Shape, flat_range_boxes
from launcher.checkpoint.reader import Checkpoint

_BLOCK = 4 * 2**20
"""Elements that are compared at once: 16 MiB of each side."""


@dataclass(frozen=True, kw_only=True)
class TensorDiff:
    """One tensor that differs."""

    name: str
    """`<kind>/<logical name>`."""
    max_abs: float
    """Largest difference of an element; infinite or not a number where elements are."""
    relative: float
    """L2 norm of the difference over that of the first side."""


@dataclass(frozen=True, kw_only=True)
class CheckpointDiff:
    """Two checkpoints compared."""

    one: str
    other: str
    num_tensors: int
    """Tensors that both hold."""
    different: tuple[TensorDiff, ...]
    """Largest relative difference first."""
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]
    reshaped: tuple[str, ...]
    """Tensors that both hold in different shapes."""
    steps: tuple[int, int]

    @property
    def is_equal(self) -> bool:
        """Whether every tensor of the one is in the other, bit by bit."""
        return not (self.different or self.only_one or self.only_other or self.reshaped)

    def to_json(self) -> dict[str, Any]:
        """One document; numbers that JSON does not have stand as null."""
        document = asdict(self)
        for entry in document["different"]:
            for key in ("max_abs", "relative"):
                entry[key] = entry[key] if math.isfinite(entry[key]) else None
        return document | {"equal": self.is_equal}


def diff_checkpoints(one: Checkpoint, other: Checkpoint) -> CheckpointDiff:
    """Compare all tensors, some megabytes at a time; ValueError where a file is torn."""
    left, right = one.manifest.tensors, other.manifest.tensors
    shared = [name for name in left if name in right]
    reshaped = [name for name in shared if left[name].shape != right[name].shape]
    found = [
        difference
        for name in shared
        if name not in reshaped
        and (difference := _diff_tensor(one, other, name, left[name].shape)) is not None
    ]
    found.sort(key=lambda entry: (-_for_sorting(entry.relative), entry.name))
    return CheckpointDiff(
        one=str(one.folder),
        other=str(other.folder),
        num_tensors=len(shared),
        different=tuple(found),
        only_one=tuple(sorted(set(left) - set(right))),
        only_other=tuple(sorted(set(right) - set(left))),
        reshaped=tuple(reshaped),
        steps=(one.manifest.step, other.manifest.step),
    )


def _diff_tensor(one: Checkpoint, other: Checkpoint, name: str, shape: Shape) -> TensorDiff | None:
    """None where all bits are equal."""
    squares = reference = largest = 0.0
    is_equal = True
    for box in _blocks(shape):
        a, b = one.read(name, box), other.read(name, box)
        if a.tobytes() == b.tobytes():
            reference += float(np.sum(np.square(a, dtype=np.float64)))
            continue
        is_equal = False
        with np.errstate(all="ignore"):
            difference = np.subtract(b, a, dtype=np.float64)
            squares += float(np.sum(np.square(difference)))
            reference += float(np.sum(np.square(a, dtype=np.float64)))
            largest = float(np.fmax(largest, np.max(np.abs(difference))))
            if np.isnan(difference).any():
                largest = math.nan
    if is_equal:
        return None
    relative = math.sqrt(squares / reference) if reference else math.inf
    return TensorDiff(name=name, max_abs=largest, relative=relative)


def _blocks(shape: Shape) -> Iterator[Box]:
    size = math.prod(shape)
    for start in range(0, size, _BLOCK):
        yield from flat_range_boxes(shape, start, min(size, start + _BLOCK))


def _for_sorting(value: float) -> float:
    return math.inf if math.isnan(value) else value
