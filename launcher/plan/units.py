"""How numbers are written for people, in the report and on the page."""

from __future__ import annotations


def gib(size_bytes: int) -> str:
    """GiB without the unit."""
    return f"{size_bytes / 2**30:,.1f}" if size_bytes >= 2**30 / 20 else f"{size_bytes / 2**30:.2g}"


def size(size_bytes: int) -> str:
    """A size in GiB or MiB."""
    return f"{gib(size_bytes)} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"


def seconds(time_s: float) -> str:
    """A time within a step."""
    if time_s >= 1 or time_s < 5e-7:  # nothing, but for rounding
        return f"{time_s:.2f} s"
    return f"{time_s * 1e3:.1f} ms" if time_s >= 1e-4 else f"{time_s * 1e6:.0f} us"


def duration(time_s: float) -> str:
    """How long a run takes, in what people plan by."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if time_s >= 2 * length:
            return f"{time_s / length:,.1f} {unit}"
    return f"{time_s:.1f} s" if time_s >= 0.1 else f"{1e3 * time_s:.1f} ms"


def count(amount: int) -> str:
    """Four digits of a count of parameters: `18.16 B`, `426.5 K`."""
    for letter, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if amount >= scale:
            value = amount / scale
            return f"{value:.2f} {letter}" if value < 100 else f"{value:.1f} {letter}"
    return str(amount)


def number(value: float) -> str:
    """Three digits of anything."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def plural(word: str, count: int) -> str:
    """`nodes`, `processes`: the word for a count."""
    return word if count == 1 else f"{word}es" if word.endswith(("s", "ch")) else f"{word}s"
