"""Which rank sits where: rank arithmetic for an N-D mesh, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from launcher.frozen import frozen
from launcher.plan.records import Layout

RANK_AXES = ("tp", "cp", "dp", "pp")
"""Axes that number ranks. ep borrows its ranks from all but pp and is none of them."""


@frozen
class Mesh:
    """Ranks as mixed-radix numbers whose digits are the coordinates on the axes."""

    order: tuple[str, ...]
    """Axes from the fastest-varying rank digit to the slowest."""
    sizes: Mapping[str, int]
    """Ranks along each axis."""

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return math.prod(self.sizes[axis] for axis in self.order)

    def strides(self) -> dict[str, int]:
        """By how much a rank grows with one step along each axis."""
        strides, stride = {}, 1
        for axis in self.order:
            strides[axis] = stride
            stride *= self.sizes[axis]
        return strides

    def coordinates(self, rank: int) -> dict[str, int]:
        """Position of a rank on every axis."""
        assert 0 <= rank < self.world_size, f"rank {rank} outside a world of {self.world_size}"
        found = {}
        for axis in self.order:
            rank, found[axis] = divmod(rank, self.sizes[axis])
        return found

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """The rank at a position; axes that are not named are at 0."""
        strides = self.strides()
        for axis, index in coordinates.items():
            assert 0 <= index < self.sizes[axis], f"{axis}={index} outside {self.sizes[axis]}"
        return sum(strides[axis] * index for axis, index in coordinates.items())

    def group_of(self, rank: int, *axes: str) -> tuple[int, ...]:
        """The ranks that differ from this one in these axes only, itself included, sorted."""
        here, strides = self.coordinates(rank), self.strides()
        base = rank - sum(here[axis] * strides[axis] for axis in axes)
        return tuple(sorted(base + offset for offset in self._offsets(axes)))

    def groups(self, *axes: str) -> tuple[tuple[int, ...], ...]:
        """All groups of ranks that differ in these axes only, in the order of their first rank."""
        offsets = sorted(self._offsets(axes))
        others = tuple(axis for axis in self.order if axis not in axes)
        bases = sorted(self._offsets(others))
        return tuple(tuple(base + offset for offset in offsets) for base in bases)

    def _offsets(self, axes: tuple[str, ...]) -> list[int]:
        strides, offsets = self.strides(), [0]
        for axis in axes:
            steps = range(self.sizes[axis])
            offsets = [offset + strides[axis] * step for step in steps for offset in offsets]
        return offsets


def build_mesh(layout: Layout) -> Mesh:
    """The mesh of a layout; axes that its order leaves out come last."""
    named = tuple(axis for axis in layout.order if axis in RANK_AXES)
    order = named + tuple(axis for axis in RANK_AXES if axis not in named)
    return Mesh(order=order, sizes={axis: getattr(layout, axis) for axis in order})


def expert_part(mesh: Mesh, rank: int, ep: int) -> int:
    """Which of ep parts of the experts a rank has: neighbours on one stage have different ones."""
    here, place, stride = mesh.coordinates(rank), 0, 1
    for axis in mesh.order:
        if axis != "pp":
            place += stride * here[axis]
            stride *= mesh.sizes[axis]
    return place % ep


def expert_groups(mesh: Mesh, ep: int) -> tuple[tuple[int, ...], ...]:
    """Ranks that together have all experts, in the order of their first rank."""
    axes = tuple(axis for axis in mesh.order if axis != "pp")
    cut = [
        group[start : start + ep]
        for group in mesh.groups(*axes)
        for start in range(0, len(group), ep)
    ]
    return tuple(sorted(cut))


def crosses_nodes(group: tuple[int, ...], gpus_per_node: int) -> bool:
    """Whether a group has ranks on more than one node (ranks are numbered node by node)."""
    return group[0] // gpus_per_node != group[-1] // gpus_per_node
