"""How much longer many devices take than one node of them: all wait for the slowest."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

from launcher.config.schema import Hardware

SPREAD = 0.015
"""Standard deviation of the speed of devices of one kind, whose clocks differ under a power limit.
Chosen among 0, 1, 1.5, 2 and 3 % on all rows of docs/backtest.md, whose mean error it leaves as it
is; without it large runs are predicted shorter than small ones of the same source."""

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
    return NormalDist().inv_cdf((number - 0.375) / (number + 0.25))
