"""How much longer many devices take than one node of them: all wait for the slowest."""

from __future__ import annotations

import math
from functools import lru_cache

from launcher.config.schema import Hardware

SPREAD = 0.015
"""Standard deviation of the speed of devices of one kind, whose clocks differ under a power limit.
Chosen among 0, 1, 1.5, 2 and 3 % on all rows of docs/backtest.md, whose mean error it hardly
moves."""

NODE = 8
"""Devices whose slowest is in the rates of conf/hardware/gpu already."""


def slowest(hardware: Hardware) -> float:
    """Time of the slowest device of all over that of the slowest of a node."""
    if hardware.device == "cpu":
        return 1.0
    return _slowest_of(hardware.num_nodes * (hardware.gpus_per_node or 1))


@lru_cache(maxsize=1024)
def _slowest_of(number: int) -> float:
    """By the expected maximum of so many normal deviates (Blom's approximation)."""
    if number <= NODE:
        return 1.0
    return 1 + SPREAD * (_expected_maximum(number) - _expected_maximum(NODE))


def _expected_maximum(number: int) -> float:
    """The deviate that this share stays under, found by halving."""
    share, low, high = (number - 0.375) / (number + 0.25), 0.0, 8.0
    for _ in range(50):
        middle = (low + high) / 2
        is_under = (1 + math.erf(middle / math.sqrt(2))) / 2 < share
        low, high = (middle, high) if is_under else (low, middle)
    return high
