"""Values and text as Hydra's command-line grammar takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.config.record import Record


def typed_value(value: Any) -> Any:
    """What is typed behind `key=`; numbers and text as they are, so that they can be shown, too."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(str(typed_value(part)) for part in value) + "]"
    if isinstance(value, (Record, Mapping)):
        parts = value.items() if isinstance(value, Mapping) else value
        return "{" + ",".join(f"{key}:{typed_value(part)}" for key, part in parts) + "}"
    return value


def hydra_text(text: str) -> str:
    r"""The text in double quotes.

    Hydra's grammar reads a backslash as itself, but in front of a quote or at the end.
    hydra_text('a"b') -> '"a\\"b"'
    """
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}{trailing * chr(92)}"'
