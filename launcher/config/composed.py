"""What a composition is, whoever made it."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from launcher.errors import Finding
from launcher.frozen import frozen


@frozen
class Composed:
    """One composition: values, and which option of each group they came from."""

    values: dict[str, Any]
    """Plain dictionary, interpolations resolved."""
    choices: dict[str, str | None]
    """Group -> option, e.g. `model` -> `tiny`."""
    findings: tuple[Finding, ...] = ()
    """Overrides that were left out because they cannot be read or name no option."""
    unknown_groups: frozenset[str] = frozenset()
    """Groups whose named option does not exist: nothing is known of their values."""
    notes: tuple[str, ...] = ()
    """Where a named option and the recipe disagreed, a line each."""
    config: Any = field(default=None, repr=False)
    """Hydra's own result, for `--cfg`; includes the `hydra` node."""
