"""Text as Hydra's command-line grammar takes it whole."""

from __future__ import annotations

import re


def hydra_text(text: str) -> str:
    r"""The text in double quotes.

    Hydra's grammar reads a backslash as itself, but in front of a quote or at the end.
    hydra_text('a"b') -> '"a\\"b"'
    """
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}{trailing * chr(92)}"'
