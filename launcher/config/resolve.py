"""From Hydra's composition to plain values: interpolations resolved, deletions applied."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from launcher.config.spelling import did_you_mean
from launcher.errors import Finding


class _EnvironmentRefused(ValueError):
    """Raised where an interpolation asks for an environment variable."""


def resolve_values(config: DictConfig) -> tuple[dict[str, Any], list[Finding]]:
    """Plain values without Hydra's node, and a finding for every one that cannot be resolved.

    What cannot be resolved is left out, so that the rest can still be judged.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    raw.pop("hydra", None)
    plain = OmegaConf.create(raw)
    with _without_environment():
        findings = list(_drop_unresolvable(plain))
        values = OmegaConf.to_container(plain, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}, findings


def delete_keys(config: DictConfig, deletions: Sequence[tuple[str, Any]]) -> list[Finding]:
    """Apply `~key` and `~key=value` to a composition; a finding for each that matches nothing.

    Hydra itself would stop at the first one.
    """
    findings = []
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    for field, wanted in deletions:
        *parents, key = field.split(".")
        node = OmegaConf.select(config, ".".join(parents)) if parents else config
        known = [str(name) for name in node] if isinstance(node, DictConfig) else []
        if key not in known:
            reason = "no such key" + did_you_mean(key, known)
        elif wanted is not None and node._get_node(key) != wanted:
            reason = f"it is {node._get_node(key)}, not {wanted}"
        else:
            del node[key]
            continue
        findings.append(Finding(field=f"~{field}", rule="unknown-key", reason=reason))
    return findings


def _drop_unresolvable(config: DictConfig) -> Iterator[Finding]:
    for path in list(_leaf_paths(OmegaConf.to_container(config, resolve=False))):
        *parents, key = path
        parent: Any = config
        for part in parents:
            parent = parent[part]
        try:
            if not OmegaConf.is_missing(parent, key):
                value = parent[key]
                if OmegaConf.is_config(value):
                    OmegaConf.to_container(value, resolve=True)
                continue
            finding = _missing(path)
        except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
            finding = _unresolvable(path, parent, error)
        if isinstance(key, int):
            parent[key] = None
        else:
            del parent[key]
        yield finding


def _leaf_paths(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of the texts, which alone can hold an interpolation or the mark of a missing value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaf_paths(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _leaf_paths(value, (*path, index))
    elif isinstance(tree, str) and ("${" in tree or tree == "???"):
        yield path


def _missing(path: tuple[str | int, ...]) -> Finding:
    field = _dotted(path)
    return Finding(
        field=field, rule="missing-key", reason="a value is required", fix=f"{field}=VALUE"
    )


def _unresolvable(path: tuple[str | int, ...], parent: Any, error: Exception) -> Finding:
    node: Any = parent._get_node(path[-1])
    value = node._value()
    if _is_caused_by(error, _EnvironmentRefused):
        return Finding(
            field=_dotted(path),
            value=value,
            rule="no-environment",
            reason="the environment is not read, since run.yaml would hold its value",
        )
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return Finding(
        field=_dotted(path),
        value=value,
        rule="interpolation",
        reason=(reason or "it refers to itself").rstrip("."),
    )


def _is_caused_by(error: BaseException | None, kind: type[Exception]) -> bool:
    while error is not None:
        if isinstance(error, kind) or kind.__name__ in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path)


@contextlib.contextmanager
def _without_environment() -> Iterator[None]:
    """Interpolations cannot read the environment: its values would end in files that are kept."""
    resolvers = BaseContainer._resolvers
    own = resolvers.get("oc.env")

    def refuse(*_: object) -> None:
        raise _EnvironmentRefused(_EnvironmentRefused.__name__)

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)
    try:
        yield
    finally:
        if own is not None:
            resolvers["oc.env"] = own
