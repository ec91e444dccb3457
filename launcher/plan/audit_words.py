"""A warning out of everything that may be typed for it."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.plan.records import Warning


def warn(id: str, message: str, fixes: Sequence[str]) -> Warning:
    """`fixes`: one at least, in the order in which they are tried."""
    first, *others = fixes
    return Warning(id=id, message=message, fix=first, others=tuple(others))
