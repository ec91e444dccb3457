"""Marks of a key's type in the schema: which of its values are legal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Range(NamedTuple):
    """Mark of a number: the values that are legal."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


class Named(NamedTuple):
    """Mark of a text: what else than its type decides whether it is legal."""

    is_known: Callable[[object], bool]
    reason: str


class _Listed(NamedTuple):
    """Mark of a tuple that may be written as a list."""


LISTED = _Listed()
