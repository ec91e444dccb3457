"""Which sample comes when, by index arithmetic: shuffles and mixtures that need no lists."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_LARGEST_TOTAL = 1 << 30
"""Weights become whole numbers with at most this sum, so that products stay within 64 bits."""


def permute(positions: Indices, size: int, key: int) -> Indices:
    """Where positions go in a permutation of range(size) that the key names.

    A Feistel network of four rounds permutes the next even power of two; what leaves the range is
    sent through again until it is inside ("cycle walking", Black and Rogaway 2002): at most four
    times on average.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    keys = [np.uint64((key + round_ * 0x9E3779B97F4A7C15) % (1 << 64)) for round_ in range(4)]
    found = positions.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        value = found[outside]
        left, right = value >> half_bits, value & mask
        for key_ in keys:
            left, right = right, left ^ (_mix(right ^ key_) & mask)
        value = left << half_bits | right
        found[outside] = value
        outside = outside[value >= np.uint64(size)]
    return found.astype(np.int64)


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit depends on every bit."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)


@dataclass(frozen=True)
class Branch:
    """Deals samples to two sides; a side is a source's number or another branch."""

    left: Branch | int
    right: Branch | int
    share: int
    """The left side gets share / total of the samples."""
    total: int

    def deal(self, samples: Indices) -> tuple[Indices, Indices]:
        """Source of every sample, and which of the source's own samples it is.

        Of the first n samples, round(n share / total) go to the left. Whole numbers only: `n //
        total` and `n % total` keep the product small.
        """
        before, after = self._count(samples), self._count(samples + 1)
        goes_left = after > before
        sources, places = np.empty_like(samples), np.empty_like(samples)
        sides = ((self.left, goes_left, before), (self.right, ~goes_left, samples - before))
        for side, here, numbers in sides:
            if isinstance(side, Branch):
                sources[here], places[here] = side.deal(numbers[here])
            else:
                sources[here], places[here] = side, numbers[here]
        return sources, places

    def _count(self, samples: Indices) -> Indices:
        whole, rest = np.divmod(samples, self.total)
        rounded: Indices = (2 * rest * self.share + self.total) // (2 * self.total)
        return whole * self.share + rounded


def build_mixture(weights: Sequence[float]) -> Branch | int:
    """A tree that deals samples by weight; with one source just its number.

    Any first n samples have n w / sum(w) of every source, give or take 3/2. Joining the two
    lightest first (Huffman) keeps every inner share at 2/3 or less, so that the rounding of all
    levels adds up to at most 1/2 (1 + 2/3 + 4/9 + ...) = 3/2.
    """
    sides: list[tuple[int, int, Branch | int]] = [
        (whole, number, number) for number, whole in enumerate(_whole_numbers(weights))
    ]
    heapq.heapify(sides)
    serial = len(sides)
    while len(sides) > 1:
        light, heavy = heapq.heappop(sides), heapq.heappop(sides)
        total = light[0] + heavy[0]
        branch = Branch(left=heavy[2], right=light[2], share=heavy[0], total=total)
        heapq.heappush(sides, (total, serial, branch))
        serial += 1
    return sides[0][2]


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of the weights as they were typed.  [0.7, 0.3] -> [7, 3]"""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    common = math.lcm(*(fraction.denominator for fraction in exact))
    wholes = [int(fraction * common) for fraction in exact]
    total = sum(wholes)
    if total > _LARGEST_TOTAL:
        wholes = [max(1, whole * (_LARGEST_TOTAL // 2) // total) for whole in wholes]
    return wholes
