"""Groups of ranks as digits of their numbers, and how many nodes such a group lies on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product

from launcher.plan.records import Layout

Digits = tuple[tuple[int, int], ...]
"""(stride, size) of what tells the ranks of a group apart, the smallest stride first."""

MOST_TRIED = 100_000
"""Ranks that are looked at one by one where a group does not fit evenly on nodes."""


def digits_of(order: Sequence[str], sizes: Mapping[str, int], axes: Sequence[str]) -> Digits:
    """Of the ranks that differ in these axes; neighbouring axes are one digit.

    digits_of(("tp", "cp", "dp", "pp"), {tp 2, cp 2, dp 4, pp 1}, ("cp", "dp")) -> ((2, 8),)
    """
    found: list[tuple[int, int]] = []
    stride = 1
    for axis in order:
        size = sizes[axis]
        if axis in axes and size > 1:
            if found and found[-1][0] * found[-1][1] == stride:
                found[-1] = (found[-1][0], found[-1][1] * size)
            else:
                found.append((stride, size))
        stride *= size
    return tuple(found)


def split_digits(digits: Digits, count: int) -> tuple[Digits, Digits]:
    """The first `count` ranks of a group, and those that have the same place in other such parts.

    split_digits(((1, 4), (16, 4)), 8) -> ((1, 4), (16, 2)), ((32, 2),)
    """
    taken: list[tuple[int, int]] = []
    left: list[tuple[int, int]] = []
    for stride, size in digits:
        part = math.gcd(count, size)
        if part > 1:
            taken.append((stride, part))
        if part < size:
            left.append((stride * part, size // part))
        count //= part
    return tuple(taken), tuple(left)


def expert_digits(order: Sequence[str], sizes: Mapping[str, int], ep: int) -> tuple[Digits, Digits]:
    """Ranks that share out the experts, and those that hold the same ones.

    With ep tp ranks hold different, whole experts, as neighbours among dp x cp do: the nearest
    ranks of one stage come first (Megatron-Core with an expert tensor parallel size of 1).
    """
    axes = ("tp", "cp", "dp") if ep > 1 else ("cp", "dp")
    return split_digits(digits_of(order, sizes, axes), ep)


def most_of_a_node(layout: Layout, of_stages: Sequence[int]) -> int:
    """What the ranks of a node take together, of the fullest one; `of_stages`: one rank of each."""
    sizes = {"tp": layout.tp, "cp": layout.cp, "dp": layout.dp, "pp": layout.pp}
    per_node, pp = layout.gpus_per_node, len(of_stages)
    digits = digits_of(layout.order, sizes, ("pp",))
    stride = digits[0][0] if digits else 1
    if pp == 1 or stride % per_node == 0:  # one stage on each node
        return per_node * max(of_stages)
    nodes = min(layout.nodes, math.lcm(stride * pp, per_node) // per_node)
    of_ranks = [of_stages[rank // stride % pp] for rank in range(nodes * per_node)]
    return max(sum(of_ranks[node * per_node : (node + 1) * per_node]) for node in range(nodes))


@lru_cache(maxsize=4096)
def most_nodes(digits: Digits, room: int, world: int) -> int:
    """Nodes of `room` ranks each that a group touches, of the groups that lie worst: groups of four
    on nodes of six lie on one node, or on two.
    """
    size = math.prod([one for _, one in digits])
    if world <= room or size == 1:
        return 1
    if len(digits) == 1:
        return _of_one_digit(*digits[0], room, world)
    lengths = [length for stride, one in digits for length in (stride, stride * one)]
    is_even = all(room % length == 0 or length % room == 0 for length in lengths)
    if is_even or size * room > MOST_TRIED:
        steps = [-(-one * stride // room) if stride < room else one for stride, one in digits]
        return min(size, math.prod(steps))
    offsets = [sum(one) for one in product(*[range(0, s * n, s) for s, n in digits])]
    firsts = [
        rank
        for rank in range(min(world, MOST_TRIED // size))
        if all(rank // stride % one == 0 for stride, one in digits)
    ]
    return max(len({(rank + offset) // room for offset in offsets}) for rank in firsts)


def _of_one_digit(stride: int, size: int, room: int, world: int) -> int:
    block, span = stride * size, stride * (size - 1)
    repeats = min(max(1, world // block), room // math.gcd(block, room))
    begins = {block * number % room for number in range(repeats)}  # of blocks, on their node
    latest = max(min(begin + stride, room) - 1 for begin in begins)  # of a block's groups
    return min(size, (latest + span) // room + 1)
