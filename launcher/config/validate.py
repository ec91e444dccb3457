"""The schema judges composed values: every unknown key, wrong type and eaten value, all at once."""

from __future__ import annotations

import contextlib
import math
import shlex
import typing
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from launcher.config.quoting import hydra_text, typed_value
from launcher.config.record import Refused
from launcher.config.record_fields import Field
from launcher.config.schema import Record, Run
from launcher.config.spelling import closest, did_you_mean
from launcher.config.wanted import alternatives, given_words, type_name, wanted_words
from launcher.errors import Finding

if TYPE_CHECKING:
    from launcher.config.written import Written

Location = tuple[str, ...]
Wrote = Callable[[str, object], "Written | None"]


def validate_run(
    values: Mapping[str, Any], written: Wrote = lambda field, given: None
) -> tuple[Run | None, list[Finding]]:
    """The run, or None with a finding for every value that the schema refuses.

    Args:
        values: as composed.
        written: what a person typed for a key, before YAML read it.

    """
    unclean = [_unclean(field, text) for field, text in _texts(values) if not _is_clean(text)]
    try:
        run = Run.model_validate(dict(values))
        return (None, unclean) if unclean else (run, [])
    except Refused as error:
        refused = [_finding(details, written) for details in error.details]
        return None, refused + unclean


def _finding(details: Mapping[str, Any], written: Wrote) -> Finding:
    location = tuple(part for part in details["loc"] if isinstance(part, str))
    field, given, kind = ".".join(location), details["input"], details["type"]
    if kind == "extra_forbidden":
        return _unknown_key(location)
    if kind == "missing":
        return Finding(field=field, rule="missing-key", reason="a value is required")
    place = ".".join(str(part) for part in details["loc"])  # Which one of a list, too.
    if kind == "string_type" and isinstance(given, (bool, int, float)):
        return _eaten(place, given, written(place, given), is_in_list=place != field)
    if kind == "literal_error":
        return _not_among(location, given)
    if kind in _BOUNDS:
        return _out_of_range(place, given, details, is_in_list=place != field)
    return _wrong_type(location, given, is_in_list=place != field)


# Options of sbatch whose keys have other names.
_QUEUE_WORDS = {
    "time": ["time_limit"], "nodes": ["hardware.num_nodes"], "gpus": ["hardware.gpus_per_node"],
    "gpus_per_node": ["hardware.gpus_per_node"], "array": ["array_limit"],
    "signal": ["signal_seconds"], "export": ["env"],
}  # fmt: skip


def _unknown_key(location: Location) -> Finding:
    """A key that the schema does not have, with its home in another group or the nearest name."""
    *parents, key = location
    siblings = sorted(_fields(_record_at(tuple(parents)) or Run))
    homes = [f"{name}.{key}" for name in _fields(Run) if key in _fields(_record_at((name,)))]
    queue = _QUEUE_WORDS.get(key.replace("-", "_"), ()) if parents == ["launch"] else ()
    meant = [*queue, *homes, *closest(key, siblings)][:1]
    return Finding(
        field=".".join(location),
        rule="unknown-key",
        reason="no such key" + (f"; did you mean '{meant[0]}'?" if meant else ""),
        legal=() if meant else siblings,
        # Whoever writes Slurm's word writes its bare value, too, which YAML reads as a number.
        fix='time_limit: "12:00:00", with its quotes' if meant == ["time_limit"] else "",
    )


def _eaten(
    field: str, given: bool | int | float, written: Written | None, *, is_in_list: bool
) -> Finding:
    """A text that YAML read as a number or a truth value."""
    original = written.text if written else _before_yaml(given)
    reason = f"this must be text, but YAML read a {type_name(given)}"
    if original and original != str(typed_value(given)):
        reason += f", as it does with {original} unquoted"
    if is_in_list:
        place = f" in {written.file}" if written and written.file else ""
        fix = f'"{original or typed_value(given)}" with its quotes in the list{place}'
    elif written and written.file:
        fix = f'{field.rpartition(".")[2]}: "{original}" in {written.file}'
    else:
        fix = f"""{field}='"{original or typed_value(given)}"', or quotes in the YAML file"""
    return Finding(field=field, value=typed_value(given), rule="yaml-eaten", reason=reason, fix=fix)


def _before_yaml(given: bool | int | float) -> str:
    """What was probably written: 43200 was 12:00:00, False was no."""
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, int) and given >= 3600:
        return f"{given // 3600}:{given // 60 % 60:02d}:{given % 60:02d}"
    if isinstance(given, int) and given >= 60:
        return f"{given // 60}:{given % 60:02d}"
    return ""


def _texts(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _texts(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from _texts(value, f"{prefix}.{number}")
    elif isinstance(tree, str):
        yield prefix, tree


def _is_clean(text: str) -> bool:
    """No control character, line end or half of a surrogate pair."""
    if text.isascii():
        return text.isprintable()
    return not any(unicodedata.category(letter) in _UNCLEAN for letter in text)


# Control characters, surrogates (bytes that are no UTF-8), line and paragraph separators.
_UNCLEAN = ("Cc", "Cs", "Zl", "Zp")


def _unclean(field: str, text: str) -> Finding:
    """Text that would break a line of the scripts and files that it is written to."""
    clean = "".join(
        " " if unicodedata.category(letter) in _UNCLEAN else letter for letter in text
    ).strip()
    return Finding(
        field=field,
        value=text,
        rule="text-on-one-line",
        reason="text is one line without control characters, since it is written into scripts",
        fix=clean if field[-1:].isdigit() else f"{field}={shlex.quote(hydra_text(clean))}",
    )


OPEN_CHOICES = {"parallelism.schedule": ("the path of a .csv or .json file",)}
"""What is legal beside the names."""


def _not_among(location: Location, given: Any) -> Finding:
    annotation = _annotation_at(location)
    legal = choices_at(location)
    field = ".".join(location)
    found, near = field_at(location), closest(str(given), [str(choice) for choice in legal])
    usual = found.default if found is not None and found.default in legal else legal[0]
    is_list = typing.get_origin(annotation) is tuple
    legal += OPEN_CHOICES.get(field, ())
    return Finding(
        field=field,
        value=typed_value(given),
        rule="unknown-value",
        reason="no such choice" + did_you_mean(str(given), [str(choice) for choice in legal]),
        legal=legal + (("null",) if type(None) in alternatives(annotation) else ()),
        fix="" if is_list else f"{field}={near[0] if near else usual}",
    )


def _wrong_type(location: Location, given: Any, *, is_in_list: bool) -> Finding:
    wanted = wanted_words(_annotation_at(location), is_in_list=is_in_list)
    field = ".".join(location)
    meant = "" if is_in_list else _meant(given, wanted)
    where = " in the list" if is_in_list else ""
    return Finding(
        field=field,
        value=typed_value(given),
        rule="wrong-type",
        reason=f"{wanted} is wanted{where}, and this is {given_words(given)}",
        fix=f"{field}={meant}" + (" without quotes" if given == meant else "") if meant else "",
    )


def _meant(given: Any, wanted: str) -> str:
    """The value of the wanted type that was probably meant; empty where none was."""
    if wanted.startswith("true"):
        words = {"true": "true", "yes": "true", "on": "true"}
        words |= {"false": "false", "no": "false", "off": "false"}
        return words.get(str(given).lower(), "")
    if "number" in wanted and isinstance(given, (str, float)):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(given)
            if math.isfinite(number) and (number.is_integer() or "whole" not in wanted):
                return str(int(number)) if "whole" in wanted else str(number)
    return ""


_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
    "finite_number": ("", "a finite number"),
}


def _out_of_range(
    field: str, given: Any, details: Mapping[str, Any], *, is_in_list: bool
) -> Finding:
    key, words = _BOUNDS[details["type"]]
    limit = details.get("ctx", {}).get(key)
    bound = "" if limit is None else f" {_number(limit)}"
    # A bound that is not itself legal says nothing to try; the key's default does.
    sound = limit if key in ("ge", "le") else _default_at(field)
    if is_in_list and key in ("gt", ""):
        sound = (limit or 0) + 1  # numbers of a list have no default
    good = "" if sound is None else _number(sound)
    fix = good and (f"{good} in its place" if is_in_list else f"{field}={good}")
    reason = f"{'each number' if is_in_list else 'it'} must be {words}{bound}"
    return Finding(field=field, value=given, rule="out-of-range", reason=reason, fix=fix)


def _number(value: float) -> str:
    """Whole numbers with all their digits: a rounded bound might not be legal."""
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return str(int(value)) if is_whole else f"{value:g}"


def _fields(record: type[Record] | None) -> tuple[str, ...]:
    return tuple(record.model_fields) if record is not None else ()


def _annotation_at(location: Location) -> Any:
    """The type of a key; None where the schema does not have it."""
    field = field_at(location)
    return field.annotation if field is not None else Run if not location else None


def _default_at(field: str) -> float | None:
    """The number that a key has when nobody names it."""
    found = field_at(tuple(field.split(".")))
    default = found.default if found is not None else None
    return default if isinstance(default, (int, float)) else None


def field_at(location: Location) -> Field | None:
    """A key as the schema has it; places in lists do not count."""
    record: type[Record] = Run
    field = None
    for part in location:
        if part.isdigit():
            continue
        field = record.model_fields.get(part)
        if field is None:
            return None
        record = record_in(field.annotation) or record
    return field


def _record_at(location: Location) -> type[Record] | None:
    return record_in(_annotation_at(location))


def record_in(annotation: Any) -> type[Record] | None:
    """The record that a field holds, None where it holds plain values."""
    for candidate in alternatives(annotation):
        if isinstance(candidate, type) and issubclass(candidate, Record):
            return candidate
    return None


def choices_at(location: Location) -> tuple[Any, ...]:
    """The values that a key is limited to; empty where it is not."""
    choices: list[Any] = []
    for alternative in alternatives(_annotation_at(location)):
        if typing.get_origin(alternative) is Literal:
            choices += typing.get_args(alternative)
    return tuple(choices)
