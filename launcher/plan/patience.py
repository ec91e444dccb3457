"""How long a rank may do without a step, and what follows: all from launch.hang_timeout_s."""

from __future__ import annotations

_FIRST = 3.0
"""What a process does for the first time may take so many times as long: kernels are compiled,
files are read, connections are made."""
_FIRST_LEAST_S = 600.0
_SHARE = 0.1
_OTHERS_S = (3.0, 60.0)


def first_step_s(hang_timeout_s: float) -> float:
    """Seconds for whatever a process does for the first time, its first step among it."""
    return max(_FIRST * hang_timeout_s, _FIRST_LEAST_S)


def others_s(hang_timeout_s: float) -> float:
    """Seconds for which a rank that has dumped its stacks waits for the others to do so.

    Ranks of one step do not begin to wait at the same moment: a pipeline drains.
    """
    least, most = _OTHERS_S
    return min(max(_SHARE * hang_timeout_s, least), most)
