"""Which known name was probably meant."""

from __future__ import annotations

from collections.abc import Sequence


def closest(name: str, known: Sequence[str]) -> list[str]:
    """Up to one name that is spelled almost the same."""
    import difflib  # after a mistake only

    return difflib.get_close_matches(name, known, n=1, cutoff=0.6)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'tp'?`, or nothing."""
    close = closest(name, known)
    return f"; did you mean '{close[0]}'?" if close else ""
