"""config.json read as a `Model`, and a `Model` written as config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.model_fields import RefusedField, build_model
from launcher.config.partial import check_partial
from launcher.config.schema import Model
from launcher.convert.families import (
    FAMILIES,
    NEUTRAL_KEYS,
    TOKEN_KEYS,
    Family,
    choose_family,
    differences,
    family_of,
    plain_fields,
)
from launcher.errors import ConfigError, Finding

_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
_LLAMA3_KEYS = {  # theirs -> ours
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
}


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a config.json says."""

    family: Family
    model: Model


def read_config(
    path: Path, name: str, overrides: Mapping[str, Any] | None = None
) -> tuple[Described | None, list[Finding]]:
    """The model behind a config.json, or every reason why it is not one of ours.

    Args:
        path: of config.json.
        name: what the model will be called.
        overrides: fields of `Model` that the user sets; they win over the file.

    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return None, [_unreadable(path, error.strerror or str(error))]
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        return None, [_unreadable(path, "it is not a JSON object")]
    family = _family_in(config)
    if family is None:
        return None, [_unknown_architecture(config)]
    given = dict(overrides or {})
    fields, findings = _fields(config, family, given)
    findings += _refused_keys(config, family)
    # A field of ours that the family does not speak of keeps its default.
    fields = {**family.constants, **fields, **given, "name": name}
    model, refused = build_model(fields)
    if model is None:
        findings += _invalid(refused, family)
        keys = {f"model.{field.location[0]}" for field in refused}
        return None, findings + check_partial({"model": fields}, keys)
    findings += check_partial({"model": model.model_dump(mode="json")}, set())
    return (None, findings) if findings else (Described(family=family, model=model), [])


def _family_in(config: Mapping[str, Any]) -> Family | None:
    named = config.get("architectures")
    if isinstance(named, list) and len(named) == 1:
        return family_of(str(named[0]))
    if named:
        return None
    kind = config.get("model_type")
    return next((family for family in FAMILIES if family.model_type == kind), None)


def _unknown_architecture(config: Mapping[str, Any]) -> Finding:
    named = config.get("architectures") or config.get("model_type")
    if isinstance(named, list):
        named = ", ".join(str(part) for part in named)
    return Finding(
        field="config.json:architectures",
        value=named,
        rule="hf-architecture",
        reason="not a class that has a model of ours beside it",
        legal=[family.architecture for family in FAMILIES],
    )


def _fields(
    config: Mapping[str, Any], family: Family, given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Finding]]:
    """Fields of `Model` by the family's table; a finding where two keys of one field disagree."""
    fields: dict[str, Any] = {}
    findings: list[Finding] = []
    said_by: dict[str, str] = {}
    for row in family.keys:
        theirs = config.get(row.key, row.default)
        if row.values and not (isinstance(theirs, str) and theirs in row.values):
            legal = list(row.values)
            findings.append(_finding_of_key(row.key, theirs, "not computed here", legal))
            continue
        value = row.values[theirs] if row.values else theirs
        if row.field in fields and fields[row.field] != value and row.field not in given:
            reason = f"{said_by[row.field]} says {fields[row.field]}, and one field has both here"
            finding = _finding_of_key(row.key, theirs, reason)
            findings.append(_with_fix(finding, f"model.{row.field}=VALUE behind the folders"))
        fields.setdefault(row.field, value)
        said_by.setdefault(row.field, row.key)
    if family.model_type == "gpt2" and fields.get("ffn_hidden_size") is None:
        width = fields["hidden_size"]
        fields["ffn_hidden_size"] = 4 * width if type(width) is int else None
    if family.has_rotary_keys:
        rope, refused = _read_rope(config)
        fields |= rope
        findings += refused
    return _without_defaults(fields), findings


def _without_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Our files leave open what follows from other values: as many kv heads as heads."""
    numbers = [fields.get(name) for name in ("hidden_size", "num_heads", "head_dim")]
    if all(type(number) is int for number in numbers):
        hidden, heads, size = numbers
        if heads * size == hidden:  # type: ignore[operator]
            fields["head_dim"] = None
    if fields.get("num_kv_heads") == fields.get("num_heads"):
        fields["num_kv_heads"] = None
    return fields


def _read_rope(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Base and stretching of the rotary positions, in the old and in the new spelling.

    transformers before 5: rope_theta beside rope_scaling {rope_type or type, ...} or null; since
    then rope_parameters {rope_type, rope_theta, ...}.
    """
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(name) or {}
    if not isinstance(given, dict):
        return {}, [_finding_of_key(name, given, "not an object")]
    said = dict(given)
    kind = said.pop("rope_type", said.pop("type", None)) or "default"
    said.pop("type", None)
    theta = said.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    if said.get("partial_rotary_factor") == 1.0:
        del said["partial_rotary_factor"]
    legal_kinds = {"default": (), "llama3": tuple(_LLAMA3_KEYS)}
    if kind not in legal_kinds:
        return {}, [_finding_of_key(f"{name}.rope_type", kind, "not computed here", legal_kinds)]
    findings = [
        _finding_of_key(f"{name}.{key}", value, f"rope_type {kind} has no such key here")
        for key, value in said.items()
        if key not in legal_kinds[kind] and value is not None
    ]
    scaling = None
    if kind == "llama3":
        said.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
        scaling = {ours: said.get(theirs) for theirs, ours in _LLAMA3_KEYS.items()}
    return {"rope_theta": theta, "rope_scaling": scaling}, findings


def _refused_keys(config: Mapping[str, Any], family: Family) -> Iterator[Finding]:
    """Keys that would be ignored although the class computes something else with them."""
    known = {row.key for row in family.keys} | NEUTRAL_KEYS
    known |= set(_ROPE_KEYS) if family.has_rotary_keys else set()
    fixed = {row.key: row.value for row in family.fixed}
    for key, value in config.items():
        if key in known or key.startswith("_") or value is None:
            continue
        if key in fixed:
            if value != fixed[key]:
                yield _finding_of_key(key, value, "not computed here", [fixed[key]])
        elif key == "quantization_config":
            reason = "quantised weights are not read; convert from the unquantised model"
            yield Finding(field=f"config.json:{key}", rule="hf-config-key", reason=reason)
        else:
            reason = "no key that is known here, so the model may compute something else with it"
            fix = "a folder with a config.json without it, if it changes nothing"
            yield _with_fix(_finding_of_key(key, _short(value), reason), fix)


def _invalid(refused: Sequence[RefusedField], family: Family) -> list[Finding]:
    keys = {row.field: row.key for row in reversed(family.keys)}
    if family.has_rotary_keys:
        keys |= {"rope_scaling": "rope_parameters", "rope_theta": "rope_theta"}
    findings = []
    for field in refused:
        first, *rest = field.location
        if field.is_unknown:
            name = ".".join(["model", first, *rest])
            findings.append(Finding(field=name, rule="unknown-key", reason="no such key"))
        else:
            key = ".".join([keys.get(first, f"model.{first}"), *rest])
            findings.append(_finding_of_key(key, _short(field.given), field.reason))
    return findings


def render_config(
    model: Model, dtype: str, original: Mapping[str, Any] | None = None
) -> tuple[Family, str]:
    """config.json of a model, as transformers 4 and 5 read it.

    Args:
        model: what the weights are of.
        dtype: float32 or bfloat16.
        original: the config.json that the weights once came with: its class is taken again where
            it fits, and its ids of special tokens, which we do not know.

    Raises ConfigError where no class computes the model.

    """
    original = original or {}
    family = choose_family(model, _family_in(original))
    if family is None:
        raise ConfigError([_no_family(model)])
    fields = plain_fields(model)
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": dtype,
    }
    for row in family.keys:
        value = fields[row.field]
        if row.values:
            value = next(word for word, ours in row.values.items() if ours == value)
        config[row.key] = value
    # Written out: classes have other defaults than ours, or none.
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = model.kv_heads
    if "head_dim" in config:
        config["head_dim"] = model.head_size
    if family.has_rotary_keys:
        config |= _rope_keys(model)
    for key in TOKEN_KEYS:
        config[key] = original.get(key)
    return family, json.dumps(config, indent=2) + "\n"


def _rope_keys(model: Model) -> dict[str, Any]:
    scaling = model.rope_scaling
    if scaling is None:
        return {"rope_theta": model.rope_theta, "rope_scaling": None}
    values = {theirs: getattr(scaling, ours) for theirs, ours in _LLAMA3_KEYS.items()}
    return {
        "rope_theta": model.rope_theta,
        "rope_scaling": {"rope_type": "llama3", **values},
    }


def _no_family(model: Model) -> Finding:
    nearest = min(FAMILIES, key=lambda family: len(differences(family, model)))
    return Finding(
        field="model",
        value=model.name,
        rule="hf-architecture",
        reason="no class of transformers that is known here computes this model; nearest is "
        f"{nearest.architecture}, but for " + ", ".join(differences(nearest, model)),
    )


def _unreadable(path: Path, reason: str) -> Finding:
    return Finding(field=str(path), rule="hf-config-readable", reason=reason)


def _finding_of_key(key: str, value: Any, reason: str, legal: Any = ()) -> Finding:
    return Finding(
        field=f"config.json:{key}",
        value="null" if value is None else value,
        rule="hf-config-key",
        reason=reason,
        legal=_as_json(legal),
    )


def _with_fix(finding: Finding, fix: str) -> Finding:
    return Finding(
        field=finding.field, value=finding.value, rule=finding.rule, reason=finding.reason, fix=fix
    )


def _as_json(values: Any) -> Sequence[object]:
    return [value if isinstance(value, str) else json.dumps(value) for value in values]


def _short(value: Any, length: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= length else text[: length - 3] + "..."
