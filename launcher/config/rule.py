"""What one rule is: a row with the key to blame, what must hold, why, and how to see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from launcher.config.schema import Run
from launcher.frozen import frozen


@frozen
class Rule:
    """One row of the table."""

    id: str
    """Stable; scripts rely on it."""
    field: str
    """Dotted key that is blamed and that the fix changes."""
    says: str
    """What must hold, in one line."""
    why: str
    """The reason, with its source."""
    broken: Callable[[Run], str | None]
    """The sentence that says what is wrong, or None where the rule holds or a value is open."""
    candidates: Callable[[Run], Iterable[Any]] = lambda run: ()
    """Values to try for `field`; those that pass every rule on `field` are the legal ones."""
    fix: str | Callable[[Run], str] = ""
    """What to type where no single legal value of `field` mends it; empty: the nearest legal."""


def divisors(number: int, limit: int | None = None) -> list[int]:
    """All divisors up to `limit`, ascending.  divisors(12, 6) -> [1, 2, 3, 4, 6]"""
    low = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    high = [number // one for one in reversed(low) if one * one < number]
    return [one for one in low + high if limit is None or one <= limit]
