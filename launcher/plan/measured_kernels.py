"""Measured kernels and exchanges: by what the model is corrected near the sizes measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from launcher.config.hardware_schema import MeasuredKernel

NEIGHBOURS = 3
"""Nearest measured sizes whose corrections are mixed, each by the inverse of its distance."""


def correct(
    modelled_s: float,
    kind: str,
    dtype: str | None,
    size: tuple[int, int, int],
    measured: Sequence[MeasuredKernel],
    model: Callable[[MeasuredKernel], float],
) -> float:
    """The modelled time, times how far `model` was off for the nearest measured sizes.

    A measured size gets its measured time. A dimension of 0 is not compared. Without kernels of
    this kind and type (None: of any) nothing changes.
    """
    kernels = [one for one in measured if one.kind == kind and dtype in (None, one.type)]
    if not kernels:
        return modelled_s
    near = sorted(((_distance(size, one), index) for index, one in enumerate(kernels)))
    nearest = [(distance, kernels[index]) for distance, index in near[:NEIGHBOURS]]
    if nearest[0][0] == 0:
        nearest = nearest[:1]
    weights = [1 / max(distance, 1e-9) for distance, _ in nearest]
    logs = [math.log(one.seconds / model(one)) for _, one in nearest]
    mean = sum(w * log for w, log in zip(weights, logs, strict=True)) / sum(weights)
    return modelled_s * math.exp(mean)


def _distance(size: tuple[int, int, int], kernel: MeasuredKernel) -> float:
    """In octaves, summed over the dimensions."""
    pairs = zip(size, (kernel.m, kernel.n, kernel.k), strict=True)
    return sum(abs(math.log2(one / two)) for one, two in pairs if one)
