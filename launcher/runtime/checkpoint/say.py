"""A line in a rank's log that can never end the training."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Print to the log; a full disk must not end the training that says so."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
