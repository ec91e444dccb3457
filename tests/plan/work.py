"""How much work something is, counted and not timed: the same on every machine, busy or not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


def count_calls(function: Callable[[], object]) -> int:
    """How many functions are called in it, Python's own and built-in ones."""
    calls = 0

    def see(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


def growth(work: Callable[[int], object], size: int, times: int) -> float:
    """How many times the calls of a size those of `times` that size are; linear work: `times`."""
    work(size)  # what is kept from one call to the next is there
    return count_calls(lambda: work(size * times)) / count_calls(lambda: work(size))
