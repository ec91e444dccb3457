"""Sorts parsed overrides by what they do, before Hydra composes them: options, keys, deletions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launcher.config.assets import conf_dir
from launcher.config.option_text import DEFAULT_RECIPE, option_text
from launcher.config.override_findings import (
    not_a_tree,
    not_movable,
    not_ours,
    several_options,
    sweep_without_m,
    unknown_group,
    unknown_option,
)
from launcher.config.quoting import hydra_text
from launcher.config.spelling import closest
from launcher.errors import Finding

FORCE = "++"
"""In front of a line that sets a key, whether or not it exists."""


class ParsedOverride(Protocol):
    """What is used of Hydra's parsed override."""

    key_or_group: str
    package: str | None
    input_line: str | None

    def value(self) -> Any:
        """Python value, not for sweeps."""

    def is_delete(self) -> bool:
        """`~key`."""

    def is_sweep_override(self) -> bool:
        """Several values."""

    def is_hydra_override(self) -> bool:
        """A key of Hydra's own settings."""


@dataclass(kw_only=True)
class Prepared:
    """Overrides as Hydra gets them, sorted by what they do."""

    lines: list[str] = field(default_factory=list)
    """Everything but the choice of the recipe and deletions of keys."""
    groups: dict[str, str] = field(default_factory=dict)
    """Group, or group@package, -> the line that names its option."""
    recipe: list[str] = field(default_factory=list)
    """Lines that choose the recipe."""
    keys: list[ParsedOverride] = field(default_factory=list)
    """Overrides that set a key; their lines are among `lines`."""
    deletions: list[tuple[str, Any]] = field(default_factory=list)
    """Dotted key and the value it must have, None for any."""
    findings: list[Finding] = field(default_factory=list)
    unknown_groups: set[str] = field(default_factory=set)
    """Groups whose option is unknown and resembles no other."""


def prepare_overrides(parsed: Sequence[ParsedOverride], config_dirs: Sequence[Path]) -> Prepared:
    """Overrides as Hydra gets them: groups checked, keys forced in, the default recipe added."""
    prepared = Prepared()
    findings = prepared.findings
    trees = [f"file://{path.resolve()}" for path in config_dirs] + _search_path(parsed)
    folders = {tree: Path(tree.removeprefix("file://")) for tree in trees if "pkg://" not in tree}
    absent = [tree for tree, folder in folders.items() if not _is_dir(folder)]
    findings += [not_a_tree(tree) for tree in absent]
    if found := [hydra_text(tree) for tree in trees if tree not in absent]:
        prepared.lines.append(f"hydra.searchpath=[{','.join(found)}]")
    roots = [conf_dir(), *(folder for folder in folders.values() if _is_dir(folder))]
    named = set()
    for override in parsed:
        options = _options(roots, override.key_or_group)
        if options:
            named.add(override.key_or_group)
        if override.is_sweep_override():
            findings.append(sweep_without_m(override.input_line or override.key_or_group))
        elif override.is_hydra_override():
            if override.key_or_group != "hydra.searchpath":
                findings.append(not_ours(override.key_or_group))
        elif "/" in override.key_or_group and not options:
            findings.append(unknown_group(override.key_or_group, _groups(roots)))
        elif override.package is not None and not ("/" in override.key_or_group and options):
            findings.append(not_movable(override.key_or_group, override.package, bool(options)))
        elif options and not isinstance(override.value(), dict):
            _prepare_option(prepared, override, options)
        elif override.is_delete():
            prepared.deletions.append((override.key_or_group, override.value()))
        else:
            prepared.lines.append(_forced(override))
            prepared.keys.append(override)
    if not named & {"model", "hardware", "recipe"}:
        prepared.recipe.append(f"recipe={DEFAULT_RECIPE}")
    return prepared


def _prepare_option(prepared: Prepared, override: ParsedOverride, options: list[str]) -> None:
    """Take the choice of an option; the one that was probably meant where there is no such."""
    group, value, line = override.key_or_group, override.value(), override.input_line or ""
    if isinstance(value, list):
        prepared.findings.append(several_options(group, options))
        return
    if group == "recipe" and value is None:
        return  # recipe=null and ~recipe: not even the default one
    option = "null" if value is None else str(value)
    if not override.is_delete():
        if option not in options:
            prepared.findings.append(unknown_option(group, option, options))
            close = closest(option, options)
            if not close:
                prepared.unknown_groups.add(group)
                return
            option = close[0]
        line = f"{_choice_key(line.partition('=')[0])}={option_text(option)}"
    if group == "recipe":
        prepared.recipe.append(line)
        return
    prepared.lines.append(line)
    if not override.is_delete():
        package = "" if override.package is None else f"@{override.package}"
        prepared.groups[group + package] = line


def _choice_key(key: str) -> str:
    """Our own groups are always in use: `+model=tiny` names an option as `model=tiny` does."""
    bare = key.lstrip("+")
    is_ours = "/" not in bare and _is_dir(conf_dir() / bare)
    return bare if is_ours or bare == key else f"+{bare}"


def _options(roots: Sequence[Path], group: str) -> list[str]:
    """Options of a group in all conf trees; empty where it is no group.

    Hydra can list them, too, but composes its own configuration again for every question.
    """
    folders = [root / group for root in roots] if group and not group.startswith("/") else []
    found = {path.stem for folder in folders if _is_dir(folder) for path in folder.glob("*.yaml")}
    return sorted(found)


def _is_dir(path: Path) -> bool:
    return os.path.isdir(path)  # Unlike Path.is_dir, it never raises, whatever the name.


def _groups(roots: Sequence[Path]) -> list[str]:
    """Groups of all conf trees, nested ones included."""
    found = {path.parent.relative_to(root) for root in roots for path in root.glob("**/*.yaml")}
    return sorted(group.as_posix() for group in found if group.parts)


def _search_path(parsed: Sequence[ParsedOverride]) -> list[str]:
    """Further conf trees, from hydra.searchpath on the command line."""
    values = [
        override.value()
        for override in parsed
        if override.key_or_group == "hydra.searchpath" and not override.is_sweep_override()
    ]
    return [str(part) for value in values if isinstance(value, list) for part in value]


def _forced(override: ParsedOverride) -> str:
    """`a.b=1` as `++a.b=1`, merged whether or not the key exists.

    The schema judges the keys later; Hydra would stop at the first unknown one.
    """
    return FORCE + (override.input_line or "").lstrip("+")
