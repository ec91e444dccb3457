"""The model by itself, without a run: its fields checked, overrides of them read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.config.compose import compose_run
from launcher.config.record import Refused
from launcher.config.schema import Model
from launcher.config.spelling import closest, did_you_mean
from launcher.errors import ConfigError, Finding


@dataclass(frozen=True, kw_only=True)
class RefusedField:
    """A value that the schema of the model refuses."""

    location: tuple[str, ...]
    """Field, and key inside it."""
    given: object
    reason: str
    is_unknown: bool
    """There is no such field."""


def build_model(fields: Mapping[str, Any]) -> tuple[Model | None, tuple[RefusedField, ...]]:
    """The model, or every value that the schema refuses."""
    try:
        return Model.model_validate(dict(fields)), ()
    except Refused as error:
        return None, tuple(
            RefusedField(
                location=tuple(str(part) for part in details["loc"]),
                given=details["input"],
                reason=details["msg"][:1].lower() + details["msg"][1:],
                is_unknown=details["type"] == "extra_forbidden",
            )
            for details in error.details
        )


def read_model_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`model.name=mine model.dropout=0` as fields and values; ConfigError for anything else."""
    if not overrides:
        return {}
    findings = []
    fields: list[str] = []
    for line in overrides:
        key = line.partition("=")[0].lstrip("+")
        group, _, field = key.partition(".")
        name = field.partition(".")[0]
        if group != "model" or not field or line.startswith("~"):
            reason = "only keys of the model can be set here, as model.KEY=VALUE"
            findings.append(Finding(field=line, rule="unused-override", reason=reason))
        elif name not in Model.model_fields:
            reason = "no such key" + did_you_mean(name, closest(name, list(Model.model_fields)))
            findings.append(Finding(field=key, rule="unknown-key", reason=reason))
        else:
            fields.append(name)
    if not findings:
        composed = compose_run(["recipe=null", *overrides])
        findings += composed.findings
    if findings:
        raise ConfigError(findings)
    return {name: composed.values["model"][name] for name in fields}
