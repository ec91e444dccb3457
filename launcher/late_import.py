"""Modules of the standard library that others import and seldom use: loaded when they are used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

METADATA = "importlib.metadata", ("distribution", "distributions", "entry_points", "version")
"""Of installed packages; pydantic asks it for plugins, which are off. It brings mail and zip."""


def import_late(name: str, functions: tuple[str, ...]) -> None:
    """Put a stand-in for a module that is not imported yet.

    `functions` may be taken from it without loading it, and load it when they are called; taking
    anything else loads it.
    """
    if name in sys.modules:
        return
    stand_in = ModuleType(name)

    def load() -> ModuleType:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return importlib.import_module(name)

    def late(function: str) -> Callable[..., Any]:
        return lambda *values, **named: getattr(load(), function)(*values, **named)

    def find(attribute: str) -> Any:
        if attribute == "__path__":  # which `from name import function` looks for
            raise AttributeError(attribute)
        return late(attribute) if attribute in functions else getattr(load(), attribute)

    stand_in.__getattr__ = find  # type: ignore[method-assign]
    sys.modules[name] = stand_in
    package, _, child = name.rpartition(".")
    setattr(importlib.import_module(package), child, stand_in)
