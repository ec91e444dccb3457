"""Hydra composes: command-line overrides and config groups become one plain dictionary.

The only module that imports Hydra. Hydra stops at the first mistake and lets `+typo` through, so
keys are merged unconditionally here and judged afterwards by the schema, all at once.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from launcher.config.assets import conf_dir
from launcher.config.composed import Composed
from launcher.config.override_findings import empty_sweep, group_not_in_use, unreadable
from launcher.config.prepare import FORCE, Prepared, prepare_overrides
from launcher.config.resolve import delete_keys, resolve_values
from launcher.errors import ConfigError, Finding


def compose_run(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Composed:
    """Compose conf/config.yaml with overrides as typed.

    A mistaken override is left out and noted in `findings`, so that the rest can still be judged.
    Raises ConfigError where nothing can be composed.
    """
    parsed, findings = parse_overrides(overrides)
    prepared = prepare_overrides(parsed, config_dirs)
    prepared.findings[:0] = findings
    with _hydra():
        config = _compose(prepared)
        notes = _keep_named_options(config, prepared)
    findings = [*prepared.findings, *delete_keys(config, prepared.deletions)]
    values, unresolved = resolve_values(config)
    return Composed(
        values=values,
        choices=dict(config.hydra.runtime.choices),
        findings=(*findings, *unresolved),
        unknown_groups=frozenset(prepared.unknown_groups),
        notes=tuple(notes),
        config=config,
    )


def compose_options(prepared: Prepared) -> DictConfig:
    """The options that overrides choose, on top of the defaults, with no recipe."""
    lines = [line for line in prepared.lines if not line.startswith(FORCE)]
    with _hydra():
        return _compose(replace(prepared, lines=lines, recipe=[]))


def parse_overrides(overrides: Sequence[str]) -> tuple[list[Override], list[Finding]]:
    """Overrides as Hydra reads them, and a finding for each that it cannot read."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    findings: list[Finding] = []
    for line in overrides:
        try:
            override = parser.parse_override(line)
            if override.key_or_group:
                parsed.append(override)
            else:
                findings.append(unreadable(line, "there is no key"))
        except HydraException as error:
            findings.append(unreadable(line, str(error).splitlines()[0].rstrip(".")))
    return parsed, findings


def split_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of `-m`: one list of overrides per combination of swept values, in order."""
    parsed, findings = parse_overrides(overrides)
    if findings:
        raise ConfigError(findings)
    try:
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError([_hydra_finding(error)]) from error
    jobs = [list(job) for batch in batches for job in batch]
    if not jobs:
        raise ConfigError([empty_sweep()])
    return jobs


def config_text(composed: Composed, kind: str, package: str | None, resolve: bool) -> str:
    """YAML of `--cfg job|hydra|all`, cut down to a package where one is named."""
    config = composed.config.copy()
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    if kind == "job":
        del config["hydra"]
    elif kind == "hydra":
        config = OmegaConf.create({"hydra": config.hydra})
    node = OmegaConf.select(config, package) if package else config
    if node is None:
        raise ConfigError(
            [Finding(field=f"--package {package}", rule="unknown-key", reason="no such package")]
        )
    # Hydra's own node holds interpolations that only a running Hydra job can resolve.
    return OmegaConf.to_yaml(node, resolve=resolve and kind == "job")


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    """Hydra over our conf folder; its global state is gone afterwards."""
    GlobalHydra.instance().clear()
    try:
        with (
            initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="launch"),
            warnings.catch_warnings(),
        ):
            # Hydra only warns of a search path that it cannot find.
            warnings.filterwarnings("error", message="provider=")
            yield
    finally:
        GlobalHydra.instance().clear()


def _compose(prepared: Prepared) -> DictConfig:
    """Hydra's composition; choices of groups that are not in use are left out and noted."""
    while True:
        try:
            lines = [*prepared.lines, *prepared.recipe]
            return compose("config", overrides=lines, return_hydra_config=True)
        except Exception as error:  # Hydra lets errors of YAML and its own assertions through.
            group = _unused_group(error)
            line = prepared.groups.pop(group, "")
            if line not in prepared.lines:
                raise ConfigError([*prepared.findings, _hydra_finding(error)]) from error
            prepared.lines.remove(line)
            prepared.findings.append(group_not_in_use(group, line))


def _unused_group(error: Exception) -> str:
    """The group of Hydra's complaint `Could not override 'GROUP'.`; empty for any other."""
    return str(error).partition("Could not override '")[2].partition("'")[0]


def _keep_named_options(config: DictConfig, prepared: Prepared) -> list[str]:
    """An option that the user names means itself: what the recipe says on its group is dropped.

    Hydra merges the recipe last, over every option, whether the recipe chose it or not. Named
    groups are therefore taken from a composition without the recipe.
    """
    choices = config.hydra.runtime.choices
    if choices.get("recipe") is None or not prepared.groups:
        return []
    # A group inside an option (hardware/gpu) needs that option.
    named = {group: line for group, line in prepared.groups.items() if "@" not in group}
    parents = {group.partition("/")[0] for group in named if "/" in group} - set(named)
    chosen = [f"{group}={choices[group]}" for group in sorted(parents & set(choices))]
    try:
        alone = compose("config", overrides=[*chosen, *prepared.lines])
    except Exception as error:  # As above.
        raise ConfigError([*prepared.findings, _hydra_finding(error)]) from error
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    notes = []
    for group, line in named.items():
        key = group.replace("/", ".")
        own, merged = _container(alone, key), _container(config, key)
        if own != merged:
            OmegaConf.update(config, key, own, merge=False, force_add=True)
            notes.append(f"{line}: as named; recipe={choices.recipe} says nothing on {key} then")
    return notes


def _container(config: DictConfig, key: str) -> Any:
    node = OmegaConf.select(config, key)
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


def _hydra_finding(error: Exception) -> Finding:
    """Hydra's, OmegaConf's or YAML's message as a finding, first lines only."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        reason = f"line {mark.line + 1} is not YAML: {error.problem}"
        return Finding(field=mark.name, rule="composition", reason=reason)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    said = [line.rstrip(".") for line in lines[:2] if not line.startswith("Config search path")]
    return Finding(field=str(key or "config"), rule="composition", reason="; ".join(said))
