"""A value to try for a mistake that names none: what the key has without the override, or what our
own files have.

Only for what is wrong: each question composes the configuration once more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from launcher.config.assets import conf_dir
from launcher.config.quick_compose import compose_values
from launcher.config.quoting import hydra_text, typed_value
from launcher.config.spelling import closest
from launcher.config.validate import validate_run
from launcher.errors import ConfigError, Finding

EXAMPLES = (
    ("hardware=h100x8", "model=mixtral_8x7b"),
    ("hardware=h100x8", "model=deepseek_v3"),
    ("hardware=h100x8", "model=t5_3b"),
)
"""Compositions that have a value for nearly every key."""

WITHOUT_VALUE = ("out-of-range", "wrong-type", "missing-key")
"""Rules of the schema that know no value by themselves."""

TOO_SMALL = "it must be at least"
"""The least number that is legal, 1 node or 1 word, is seldom one that suits the rest."""

Values = Mapping[str, Any]


def values_without(
    keys: Set[str], overrides: Sequence[str], config_dirs: Sequence[Path]
) -> Mapping[str, Any]:
    """What the files say where the overrides of some keys are left out; ConfigError likewise."""
    kept = [line for line in overrides if line.partition("=")[0].lstrip("+~") not in keys]
    return compose_values(kept, config_dirs).values


def with_usual_values(
    findings: Sequence[Finding], values: Callable[[frozenset[str]], Values]
) -> list[Finding]:
    """The findings, those that name no value to type with one where it can be known.

    `values` of some keys is the run without what the user wrote there.
    """
    bare = frozenset(finding.field for finding in findings if _is_bare(finding))
    before = _fixes(lambda: values(bare), bare) if bare else {}
    return [_with_fix(_with_option(finding, values), before) for finding in findings]


def _is_bare(finding: Finding) -> bool:
    has_value = bool(finding.fix or finding.legal) and TOO_SMALL not in finding.reason
    return finding.rule in WITHOUT_VALUE and not has_value


def _with_fix(finding: Finding, before: Mapping[str, str]) -> Finding:
    key = finding.field
    if finding.rule == "unknown-option" and not finding.fix and finding.legal:
        default = compose_values(EXAMPLES[0][:1]).choices.get(key)  # no recipe
        usual = default if default in finding.legal else finding.legal[0]
        return replace(finding, fix=f"{key}={usual}")
    if not _is_bare(finding):
        return finding
    fix = before.get(key, "")
    is_missing = finding.rule == "missing-key"
    # The least bandwidth that is legal is no machine's: of hardware ours have something better.
    for words in () if finding.fix and not key.startswith("hardware.") else EXAMPLES:
        if not fix or (is_missing and fix == f"{key}=null"):
            fix = _fixes(partial(_composed, words), {key}).get(key, "")
    return replace(finding, fix=fix or finding.fix)


def _composed(words: Sequence[str]) -> Values:
    return compose_values(words).values


def _with_option(finding: Finding, values: Callable[[frozenset[str]], Values]) -> Finding:
    """hardware.gpu=h100 names an option of the group hardware/gpu as if it were a value."""
    if finding.rule != "wrong-type" or not isinstance(finding.value, str):
        return finding
    group = finding.field.replace(".", "/")
    options = sorted(path.stem for path in conf_dir().joinpath(group).glob("*.yaml"))
    near = closest(finding.value, options)
    if not near:
        return finding
    try:
        chosen = _value_at(finding.field, values(frozenset({finding.field})))
    except ConfigError:
        return finding
    plus = "" if isinstance(chosen, Mapping) else "+"
    return replace(finding, fix=f"{plus}{group}={near[0]}")


def _fixes(values: Callable[[], Values], keys: Set[str]) -> dict[str, str]:
    """What to type for these keys: their values in a composition, where it has legal ones."""
    try:
        composed = values()
    except ConfigError:
        return {}
    run, refused = validate_run(composed)
    if run is not None:  # defaults of the schema, too
        composed = run.model_dump(mode="json")
    wrong = {finding.field for finding in refused}
    return {key: fix for key in keys - wrong if (fix := _fix(key, _value_at(key, composed)))}


def _fix(key: str, value: Any) -> str:
    """key=value; of a group its first key, since a group cannot be typed."""
    while isinstance(value, Mapping) and value:
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    if value is _MISSING or isinstance(value, Mapping):
        return ""
    is_plain = not isinstance(value, str) or _PLAIN.fullmatch(value)
    return f"{key}={typed_value(value) if is_plain else hydra_text(value)}"


_PLAIN = re.compile(r"[A-Za-z_][\w/-]*", re.ASCII)
"""Text that Hydra's grammar takes for nothing else."""

_MISSING = object()


def _value_at(key: str, values: Values) -> Any:
    """What stands at a dotted key; _MISSING where nothing does."""
    value: Any = values
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value
