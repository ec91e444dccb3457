"""Something to type where a value was refused and its key alone does not say what would pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.config.quick_compose import compose_values
from launcher.config.quoting import hydra_text
from launcher.config.validate import validate_run
from launcher.errors import ConfigError, Finding


def values_without(
    keys: Set[str], overrides: Sequence[str], config_dirs: Sequence[Path]
) -> Mapping[str, Any]:
    """What the files say where the overrides of some keys are left out; ConfigError likewise."""
    kept = [line for line in overrides if line.partition("=")[0].lstrip("+~") not in keys]
    return compose_values(kept, config_dirs).values


def with_usual_values(
    findings: Sequence[Finding], values: Callable[[frozenset[str]], Mapping[str, Any]]
) -> list[Finding]:
    """The findings; those of refused values that name nothing to type now name the usual value.

    `values` of some keys is the run without what the user wrote there.
    """
    bare = frozenset(finding.field for finding in findings if _is_bare(finding))
    if not bare:
        return list(findings)
    try:
        usual = values(bare)
    except ConfigError:
        return list(findings)
    run, refused = validate_run(usual)
    if run is not None:  # defaults of the schema, too
        usual = run.model_dump(mode="json")
    still = {finding.field for finding in refused}
    return [
        _with_value(finding, usual) if finding.field in bare - still else finding
        for finding in findings
    ]


def _is_bare(finding: Finding) -> bool:
    return finding.rule in ("wrong-type", "out-of-range") and not (finding.fix or finding.legal)


def _with_value(finding: Finding, usual: Mapping[str, Any]) -> Finding:
    value: Any = usual
    for part in finding.field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return finding
        value = value[part]
    if isinstance(value, Mapping):
        return finding
    return replace(finding, fix=f"{finding.field}={_typed(value)}")


def _typed(value: Any) -> str:
    """As Hydra's command line wants it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_typed(member) for member in value)}]"
    if isinstance(value, str) and not value.isidentifier():
        return hydra_text(value)
    return str(value)
