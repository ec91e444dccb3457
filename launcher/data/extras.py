"""Libraries that only some inputs need."""

from __future__ import annotations

import importlib
from typing import Any

from launcher.errors import ConfigError, Finding


def import_extra(module: str, what: str) -> Any:
    """A module of the `data` extra.

    Raises ConfigError where it is not installed, with what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        finding = Finding(
            field="INPUT",
            rule="extra-installed",
            reason=f"{what} needs the package {module.partition('.')[0]}, which is not installed",
            fix="pip install 'launch[data]'",
        )
        raise ConfigError([finding]) from None
