"""`train.init_from`: the weights that a run starts from, checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.quoting import typed_value
from launcher.config.schema import Model, Run
from launcher.convert.families import plain_fields
from launcher.convert.new_folder import size_words
from launcher.convert.source import FOLDERS, Weights, compare_shapes, open_weights, weights_folder
from launcher.errors import ConfigError, Finding
from launcher.plan.records import Warning

_SAME = ("num_heads", "num_kv_heads", "head_dim", "position", "norm", "activation")
"""Fields that shapes do not always show; weights mean nothing under another value."""
_MAY_CHANGE = ("norm_eps", "rope_theta", "rope_scaling", "sliding_window")
"""Fields that some change on purpose, as for longer sequences."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A run whose weights to start from are known to fit it."""

    run: Run
    decisions: tuple[str, ...] = ()
    warnings: tuple[Warning, ...] = ()


def settle_init_from(run: Run) -> Settled:
    """The run with the absolute path of the folder that holds the weights.

    A folder that is not on this machine is left to the job, where the hardware is elsewhere.
    Raises ConfigError where the weights cannot be read or are of another model.
    """
    given = run.train.init_from
    if given is None:
        return Settled(run=run)
    path = Path(os.path.expanduser(given)).absolute()
    if run.hardware.name != "local" and not path.exists():
        if not Path(given).is_absolute():
            reason = "it is not here, and elsewhere a relative path would mean another folder"
            raise ConfigError([_finding(given, reason)])
        return Settled(
            run=run, decisions=(f"train.init_from={given}: not on this machine; the job checks it",)
        )
    weights = open_for(run.model, path)
    decision = f"{weights.description}, {size_words(weights.num_bytes)}"
    return Settled(
        run=_with_folder(run, weights.folder),
        decisions=(f"train.init_from={weights.folder}: {decision}",),
        warnings=tuple(_differences(run.model, weights.model)),
    )


def require_init_from(run: Run) -> None:
    """Raise ConfigError where a job that starts on this machine would not find its weights."""
    given = run.train.init_from
    if given is not None and run.launch.name == "local" and not Path(given).exists():
        raise ConfigError([_finding(given, "there is no such folder")])


def open_for(model: Model, path: Path) -> Weights:
    """The weights behind a path, known to be those of a model of this shape and function."""
    try:
        weights = open_weights(*weights_folder(path))
    except ConfigError as error:
        raise ConfigError([_blamed(finding, path) for finding in error.findings]) from error
    here, there = plain_fields(model), plain_fields(weights.model)
    findings = compare_shapes(weights.source, model)
    findings += [
        Finding(
            field=f"model.{name}",
            value=typed_value(here[name]),
            rule="weights-fit-model",
            reason=f"the weights in {path} were made with {typed_value(there[name])}",
            fix=f"model.{name}={typed_value(there[name])}",
        )
        for name in _SAME
        if here[name] != there[name]
    ]
    if findings:
        reason = f"these are weights of another model than model={model.name}"
        fix = "the model that they are of: `launch convert` writes its YAML beside them"
        head = Finding(
            field="train.init_from", value=str(path), rule="weights-fit-model", reason=reason,
            fix=fix,
        )  # fmt: skip
        raise ConfigError([head, *findings])
    return weights


def _differences(here: Model, there: Model) -> Iterator[Warning]:
    ours, theirs = plain_fields(here), plain_fields(there)
    for name in _MAY_CHANGE:
        if ours[name] != theirs[name]:
            yield Warning(
                id="init-from-differs",
                message=f"model.{name} is {typed_value(ours[name])} here, and the weights of "
                f"train.init_from were made with {typed_value(theirs[name])}",
                fix=f"model.{name}={typed_value(theirs[name])}",
            )


def _with_folder(run: Run, folder: Path) -> Run:
    train = run.train.model_copy(update={"init_from": str(folder)})
    return run.model_copy(update={"train": train})


def _blamed(finding: Finding, path: Path) -> Finding:
    """A finding about the folder itself, under the key that names it."""
    if finding.field != str(path):
        return finding
    return replace(finding, field="train.init_from", value=str(path))


def _finding(value: str, reason: str) -> Finding:
    return Finding(
        field="train.init_from", value=value, rule="weights-readable", reason=reason, fix=FOLDERS
    )
