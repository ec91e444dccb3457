"""How far around a ring of context-parallel ranks keys have to go."""

from __future__ import annotations


def ring_reach(cp: int, sequence_length: int, window: int | None) -> int | None:
    """Neighbours on either side whose keys some query of a rank sees; None: all ranks'.

    Under the zig-zag cut rank i has the chunks i and 2n - 1 - i of 2n. A query sees keys up to
    `window - 1` tokens back, so a chunk meets those at most so many chunks before it, and they are
    on ranks at most as far away. Where both sides together are as many as all others, keys go
    around the whole ring.
    """
    if window is None or window >= sequence_length:
        return None
    chunk = sequence_length // (2 * cp)
    # The first query of a chunk is one token behind the last key of the chunk before it.
    reach = (window - 2) // chunk + 1 if window > 1 else 0
    return reach if 2 * reach <= cp - 1 else None


def ring_hops(cp: int, sequence_length: int, window: int | None) -> int:
    """How often a rank in the middle sends keys and values in one pass."""
    reach = ring_reach(cp, sequence_length, window)
    return cp - 1 if reach is None else 2 * reach
