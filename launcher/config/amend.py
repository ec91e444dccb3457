"""Overrides on top of a frozen run, as `launch resume` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.compose import compose_options, parse_overrides
from launcher.config.prepare import ParsedOverride, Prepared, prepare_overrides
from launcher.config.resolve import delete_keys, resolve_values
from launcher.errors import Finding


@dataclass(frozen=True, kw_only=True)
class Amended:
    """The values of a frozen run with overrides applied, not yet judged."""

    values: dict[str, Any]
    choices: dict[str, str | None]
    """Group -> option, for the groups that the overrides name."""
    named: frozenset[str]
    """Dotted keys and groups that the overrides name."""
    findings: tuple[Finding, ...] = ()
    unknown_groups: frozenset[str] = frozenset()
    """Groups whose named option does not exist: nothing is known of their values."""


def amend_values(
    frozen: Mapping[str, Any], overrides: Sequence[str], config_dirs: Sequence[Path] = ()
) -> Amended:
    """Apply overrides to the values of a run.yaml: `group=option` replaces a whole group.

    A mistaken override is left out and noted in `findings`. Raises ConfigError where the options
    cannot be composed.
    """
    parsed, unreadable = parse_overrides(overrides)
    prepared = prepare_overrides(parsed, config_dirs)
    # 1. Options replace groups.
    config = OmegaConf.create(_escaped(dict(frozen)))
    choices = _replace_groups(config, prepared) if prepared.groups else {}
    # 2. Keys, then deletions, as Hydra orders them.
    findings = [finding for key in prepared.keys if (finding := _set_key(config, key))]
    deleted = delete_keys(config, prepared.deletions)
    values, unresolved = resolve_values(config)
    named = {group.partition("@")[0].replace("/", ".") for group in prepared.groups}
    named |= {override.key_or_group for override in prepared.keys}
    return Amended(
        values=values,
        choices=choices,
        named=frozenset(named | {key for key, _ in prepared.deletions}),
        findings=(
            *unreadable,
            *prepared.findings,
            *_not_a_change(parsed, choices),
            *findings,
            *deleted,
            *unresolved,
        ),
        unknown_groups=frozenset(prepared.unknown_groups),
    )


def _replace_groups(config: DictConfig, prepared: Prepared) -> dict[str, str | None]:
    options = compose_options(prepared)
    chosen = options.hydra.runtime.choices
    for group in prepared.groups:
        name, _, package = group.partition("@")
        key = package or name.replace("/", ".")
        node = OmegaConf.select(options, key)
        own = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        OmegaConf.update(config, key, own, merge=False, force_add=True)
    return {group: chosen.get(group) for group in prepared.groups}


def _set_key(config: DictConfig, override: ParsedOverride) -> Finding | None:
    """Set one dotted key, known to the schema or not; a finding where it has no place."""
    key = override.key_or_group
    try:
        OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
    except (OmegaConfBaseException, AssertionError, ValueError, TypeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no such place")
        return Finding(field=key, rule="composition", reason=reason.rstrip("."))
    return None


def _not_a_change(
    parsed: Sequence[ParsedOverride], choices: Mapping[str, str | None]
) -> list[Finding]:
    """What chooses a whole run cannot change one."""
    lines = [o.input_line or "recipe" for o in parsed if o.key_or_group == "recipe"]
    if choices.get("model") == "auto":
        lines.append("model=auto")
    return [
        Finding(
            field=line,
            rule="run-on-resume",
            reason="this chooses a run, and a resumed run is chosen already",
            fix="the keys that are to change, e.g. train.steps=1000",
        )
        for line in lines
    ]


def _escaped(tree: Any) -> Any:
    """Frozen text stays text: what looks like an interpolation was resolved long ago."""
    if isinstance(tree, dict):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return tree.replace("${", "\\${") if isinstance(tree, str) else tree
