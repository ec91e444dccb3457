"""Which known name was probably meant."""

from __future__ import annotations

from collections.abc import Sequence


def closest(name: str, known: Sequence[str]) -> list[str]:
    """Up to one name: of which this is the beginning, or that is spelled almost the same."""
    import difflib  # after a mistake only

    begun = [one for one in known if len(name) > 1 and one.startswith(name.lower())]
    if begun:
        return [min(begun, key=len)]
    return difflib.get_close_matches(name, known, n=1, cutoff=0.6)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'tp'?`, or nothing."""
    close = closest(name, known)
    return f"; did you mean '{close[0]}'?" if close else ""
