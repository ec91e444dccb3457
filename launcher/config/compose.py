"""Hydra composes: command-line overrides and config groups become one plain dictionary.

The only module that imports Hydra. Hydra stops at the first mistake and lets `+typo` through, so
keys are merged unconditionally here and judged afterwards by the schema, all at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.assets import conf_dir
from launcher.config.spelling import closest, did_you_mean
from launcher.errors import ConfigError, Finding

DEFAULT_RECIPE = "quickstart"


@dataclass(frozen=True, kw_only=True)
class Composed:
    """One composition: values, and which option of each group they came from."""

    values: dict[str, Any]
    """Plain dictionary, interpolations resolved."""
    choices: dict[str, str | None]
    """Group -> option, e.g. `model` -> `tiny`."""
    findings: tuple[Finding, ...] = ()
    """Overrides that were left out because they cannot be read or name no option."""
    config: DictConfig = field(repr=False)
    """Hydra's own result, for `--cfg`; includes the `hydra` node."""


def compose_run(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Composed:
    """Compose conf/config.yaml with overrides as typed.

    A mistaken override is left out and noted in `findings`, so that the rest can still be judged.
    Raises ConfigError where nothing can be composed.
    """
    with _hydra():
        lines, deletions, findings = _prepare(overrides, config_dirs)
        try:
            config = compose("config", overrides=lines, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([*findings, _hydra_finding(error)]) from error
    findings += _delete(config, deletions)
    values, unread = _plain(config)
    choices = dict(config.hydra.runtime.choices)
    return Composed(values=values, choices=choices, findings=(*findings, *unread), config=config)


def split_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of `-m`: one list of overrides per combination of swept values, in order."""
    parsed, findings = _parse(overrides)
    if findings:
        raise ConfigError(findings)
    try:
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError([_hydra_finding(error)]) from error
    return [list(job) for job in batches[0]]


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


def complete(shell_line: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """Completions of a partly typed command line, program and verb already removed."""
    from hydra._internal.core_plugins.bash_completion import BashCompletion

    with _hydra() as loader:
        return list(BashCompletion(loader)._query(config_name="config", line=shell_line))


def completion_script(shell: str, command: str) -> None:
    """Print the shell code that installs or removes completion for bash, zsh or fish."""
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra._internal.core_plugins.fish_completion import FishCompletion
    from hydra._internal.core_plugins.zsh_completion import ZshCompletion

    plugins: dict[str, Any] = {"bash": BashCompletion, "fish": FishCompletion, "zsh": ZshCompletion}
    if shell not in plugins or command not in ("install", "uninstall"):
        legal = [f"{verb}={name}" for verb in ("install", "uninstall") for name in sorted(plugins)]
        raise ConfigError(
            [
                Finding(
                    field=f"--shell-completion {command}={shell}",
                    rule="unknown-option",
                    reason="no such shell or command",
                    legal=legal,
                )
            ]
        )
    with _hydra() as loader:
        getattr(plugins[shell](loader), command)()


@contextlib.contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    """Hydra's config loader over our conf folder; its global state is gone afterwards."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="launch"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()


def _prepare(
    overrides: Sequence[str], config_dirs: Sequence[Path]
) -> tuple[list[str], list[Override], list[Finding]]:
    """Overrides as Hydra gets them: groups checked, keys forced in, defaults added.

    Deletions of keys are handed back: Hydra stops at the first one that names no key.
    """
    parsed, findings = _parse(overrides)
    searchpath = [f"hydra.searchpath=[{','.join(_quoted_path(d) for d in config_dirs)}]"]
    lines = searchpath if config_dirs else []
    roots = _roots(parsed, config_dirs)
    groups_named: set[str] = set()
    deletions = []
    for override in parsed:
        key = override.key_or_group
        options = _options(roots, key)
        if override.is_sweep_override():
            mistakes = [_sweep_finding(override)]
        elif override.is_hydra_override():
            mistakes = _hydra_override_findings(override)
        elif options:
            groups_named.add(key)
            mistakes = _option_findings(override, options)
        else:
            mistakes = []
        findings += mistakes
        if override.is_delete() and not options and not mistakes:
            deletions.append(override)
        elif not mistakes:
            lines.append(_line(override, is_group=bool(options)))
    if not groups_named & {"model", "hardware", "recipe"}:
        lines.append(f"recipe={DEFAULT_RECIPE}")
    return lines, deletions, findings


def _parse(overrides: Sequence[str]) -> tuple[list[Override], list[Finding]]:
    parser = OverridesParser.create()
    parsed: list[Override] = []
    findings: list[Finding] = []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(line))
        except HydraException as error:
            reason = str(error).splitlines()[0].rstrip(".")
            findings.append(
                Finding(
                    field=line,
                    rule="override-syntax",
                    reason=f"not a Hydra override ({reason})",
                    fix=f"key=value; quote values with special characters: '{_quoted(line)}'",
                )
            )
    return parsed, findings


def _quoted(line: str) -> str:
    key, _, value = line.partition("=")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key or "key"}="{escaped}"'


def _quoted_path(path: Path) -> str:
    escaped = str(path.resolve()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"file://{escaped}"'


def _options(roots: Sequence[Path], group: str) -> list[str]:
    """Options of a group in all conf trees; empty where it is no group.

    Hydra can list them, too, but composes its own configuration again for every question.
    """
    folders = [root / group for root in roots] if group else []
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _roots(parsed: Sequence[Override], config_dirs: Sequence[Path]) -> list[Path]:
    """Conf trees on this disk: ours, those of --config-dir and of hydra.searchpath."""
    roots = [conf_dir(), *config_dirs]
    for override in parsed:
        value = override.value()
        if override.key_or_group == "hydra.searchpath" and isinstance(value, list):
            roots += [Path(str(part).removeprefix("file://")) for part in value]
    return roots


def _option_findings(override: Override, known: list[str]) -> list[Finding]:
    """Options that the group does not have."""
    group, value, options = override.key_or_group, override.value(), sorted(known)
    if override.is_delete() or value is None or isinstance(value, dict):
        return []
    wanted = [str(part) for part in value] if isinstance(value, list) else [str(value)]
    return [
        Finding(
            field=group,
            value=name,
            rule="unknown-option",
            reason="no such option" + did_you_mean(name, options),
            legal=options,
            fix=f"{group}={close[0]}" if (close := closest(name, options)) else "",
        )
        for name in wanted
        if name not in options
    ]


def _sweep_finding(override: Override) -> Finding:
    line = override.input_line or override.key_or_group
    return Finding(
        field=line,
        rule="sweep-without-m",
        reason="several values are a sweep, and a sweep needs -m",
        fix=f"-m {line}, or quote the value to keep it one",
    )


def _hydra_override_findings(override: Override) -> list[Finding]:
    """Only the search path of Hydra's own settings has a meaning here."""
    if override.key_or_group == "hydra.searchpath":
        return []
    return [
        Finding(
            field=override.key_or_group,
            rule="unknown-key",
            reason="Hydra's own job settings are not used; the run directory is ours",
            legal=["hydra.searchpath"],
            fix="--run-dir DIR",
        )
    ]


def _line(override: Override, is_group: bool) -> str:
    """An override as Hydra gets it: `a.b=1` as `++a.b=1`, merged whether or not the key exists.

    The schema judges the keys later; Hydra would stop at the first unknown one.
    """
    line = override.input_line or ""
    keeps_form = override.is_delete() or override.is_force_add() or override.is_hydra_override()
    if keeps_form or (is_group and not isinstance(override.value(), dict)):
        return line
    return "++" + line.lstrip("+")


def _delete(config: DictConfig, deletions: Sequence[Override]) -> list[Finding]:
    """Apply `~key` and `~key=value`; a finding for each that matches nothing."""
    findings = []
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    for override in deletions:
        *parents, key = override.key_or_group.split(".")
        node = OmegaConf.select(config, ".".join(parents)) if parents else config
        known = list(node) if isinstance(node, DictConfig) else []
        wanted = override.value()
        if key in known and (wanted is None or node._get_node(key) == wanted):
            del node[key]
        else:
            reason = f"it has another value than {wanted}" if key in known else "no such key"
            hint = "" if key in known else did_you_mean(key, [str(name) for name in known])
            findings.append(
                Finding(field=f"~{override.key_or_group}", rule="unknown-key", reason=reason + hint)
            )
    return findings


def _plain(config: DictConfig) -> tuple[dict[str, Any], list[Finding]]:
    """Resolved plain values without Hydra's node.

    The environment is not readable from configs: its values would end in files that are written.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    raw.pop("hydra", None)
    findings = [
        Finding(
            field=key,
            value=value,
            rule="no-environment",
            reason="the environment is not read, since run.yaml would hold its value",
        )
        for key, value in _leaves(raw)
        if isinstance(value, str) and "${oc.env" in value
    ]
    if findings:
        return {str(key): value for key, value in raw.items()}, findings
    try:
        values = OmegaConf.to_container(OmegaConf.create(raw), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError([_hydra_finding(error)]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}, []


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _hydra_finding(error: Exception) -> Finding:
    """Hydra's or OmegaConf's message as a finding, first lines only."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    return Finding(
        field=str(key) if key else "config",
        rule="composition",
        reason="; ".join(lines[:2]).rstrip("."),
    )
