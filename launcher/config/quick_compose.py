"""Composition of plain command lines without Hydra, whose import and work take half a second.

What is plain: options of our own groups, and dotted keys with plain values. Everything else is left
to Hydra, mistakes included: whatever is not known here for certain raises NotPlain. A test compares
both on every option of every group.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.assets import conf_dir
from launcher.config.composed import Composed
from launcher.config.option_text import DEFAULT_RECIPE, option_text
from launcher.config.plain_yaml import NotPlain, read_plain

_KEY = re.compile(r"[a-z]\w*(?:\.[a-z]\w*)+", re.ASCII)
_OPTION = re.compile(r"[0-9]?[A-Za-z][\w.]*", re.ASCII)
_WORD = re.compile(r"[A-Za-z][\w/-]*(?:\.[A-Za-z][\w/-]*)*", re.ASCII)
_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
_FLOAT = re.compile(r"-?[0-9]+\.[0-9]+(?:e-?[0-9]+)?|-?[1-9][0-9]*e-?[0-9]+", re.ASCII)
_NAMES: dict[str, Any] = {"null": None, "true": True, "false": False}
_SCHEDULES = ("1f1b",)
_NOT_WORDS = ("inf", "nan", *_NAMES)


def compose_values(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Composed:
    """`compose_run` without Hydra's own configuration: the quick way where that is certain.

    Raises ConfigError likewise.
    """
    try:
        return compose_quickly(overrides, config_dirs)
    except NotPlain:
        from launcher.config.compose import compose_run

        return compose_run(overrides, config_dirs)


def compose_quickly(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Composed:
    """What `compose_run` says of a plain command line; NotPlain for any other."""
    if config_dirs:
        raise NotPlain("other conf trees")
    typed = _read(overrides)
    recipe = typed.options.pop("recipe", None)
    if not (typed.has_recipe or {"model", "hardware"} & typed.options.keys()):
        recipe = DEFAULT_RECIPE
    both = _Composition(typed, recipe)
    alone = _Composition(typed, None) if recipe and typed.options else both
    notes = []
    for group, option in typed.options.items():
        # An option that the user names means itself: what the recipe says there is dropped.
        own = alone.values.get(group)
        if own != both.values.get(group):
            both.values[group] = own
            line = f"{group}={option_text(option or '')}"
            notes.append(f"{line}: as named; recipe={recipe} says nothing on {group} then")
    return Composed(values=both.values, choices=both.choices, notes=tuple(notes))


@dataclass(kw_only=True)
class _Typed:
    """A command line."""

    options: dict[str, str | None] = field(default_factory=dict)
    """Group -> option."""
    keys: list[tuple[list[str], Any]] = field(default_factory=list)
    """Parts of a dotted key, and the value."""
    has_recipe: bool = False


def _read(overrides: Sequence[str]) -> _Typed:
    typed = _Typed()
    for line in overrides:
        name, equals, text = line.partition("=")
        if not equals:
            raise NotPlain(line)
        if _KEY.fullmatch(name):
            if name.startswith("hydra."):
                raise NotPlain(line)
            typed.keys.append((name.split("."), _value(text)))
        elif name in typed.options or not _is_option(name, text):
            raise NotPlain(line)
        else:
            typed.options[name] = text
            typed.has_recipe |= name == "recipe"
    return typed


def _is_option(group: str, text: str) -> bool:
    is_plain = _OPTION.fullmatch(text) and not _FLOAT.fullmatch(text)
    if not is_plain or text.lower() in _NOT_WORDS or "/" in group:
        return False
    # isfile, unlike is_file, takes a name that is too long for one as no file.
    return os.path.isfile(conf_dir() / group / f"{text}.yaml")


def _value(text: str) -> Any:
    """A scalar of Hydra's grammar, or a list of such."""
    if text.startswith("[") and text.endswith("]"):
        return [_value(part) for part in text[1:-1].split(",")] if text != "[]" else []
    if text in _NAMES:
        return _NAMES[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text in _SCHEDULES or (_WORD.fullmatch(text) and text.lower() not in _NOT_WORDS):
        return text
    raise NotPlain(text)


class _Composition:
    """conf/config.yaml with options and keys."""

    def __init__(self, typed: _Typed, recipe: str | None) -> None:
        self.values: dict[str, Any] = {}
        self.choices: dict[str, str | None] = {}
        self._options = dict(typed.options)
        body: dict[str, Any] = {}
        if recipe is not None:
            body = self._recipe(recipe)
        _, primary = read_plain(conf_dir() / "config.yaml")
        for group, option in _defaults(primary):
            if group == "_self_":
                _merge(self.values, _body(primary))
            elif group == "recipe":
                self.choices["recipe"] = recipe
                _merge(self.values, body)
            elif not group.startswith("override hydra/"):
                self._add(group, self._options.get(group, option), self.values)
        for parts, value in typed.keys:
            _set(self.values, parts, value)

    def _recipe(self, name: str) -> dict[str, Any]:
        """Its values; what it chooses counts unless the user names another option."""
        header, values = read_plain(conf_dir() / "recipe" / f"{name}.yaml")
        if header.split() != ["#", "@package", "_global_"]:
            raise NotPlain(header)
        for group, option in _defaults(values):
            word, _, path = group.partition(" ")
            if word != "override" or not path.startswith("/") or "/" in path[1:]:
                raise NotPlain(group)
            self._options.setdefault(path[1:], option)
        return _body(values)

    def _add(self, group: str, option: str | None, parent: dict[str, Any]) -> None:
        """The values of an option under its group's key, and of those inside it."""
        if option is None:
            raise NotPlain(group)
        self.choices[group] = option
        header, values = read_plain(conf_dir() / group / f"{option}.yaml")
        if header:
            raise NotPlain(header)
        own: dict[str, Any] = {}
        entries = list(_defaults(values)) or [("_self_", None)]
        if ("_self_", None) not in entries:
            raise NotPlain(group)
        for inner, chosen in entries:
            if inner == "_self_":
                _merge(own, _body(values))
            else:
                self._add(f"{group}/{inner}", chosen, own)
        _merge(parent, {group.rpartition("/")[2]: own})


def _defaults(values: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Groups and options in order, `_self_` among them."""
    entries = values.get("defaults", [])
    if not isinstance(entries, list):
        raise NotPlain("defaults")
    for entry in entries:
        if entry == "_self_":
            yield entry, None
            continue
        if not isinstance(entry, dict) or len(entry) != 1:
            raise NotPlain(str(entry))
        ((group, option),) = entry.items()
        if option is not None and not isinstance(option, str):
            raise NotPlain(str(entry))
        plain = re.fullmatch(r"[a-z]\w*|optional recipe|override hydra/\w+|override /\w+", group)
        if plain is None:
            raise NotPlain(group)
        yield group.removeprefix("optional "), option


def _body(values: dict[str, Any]) -> dict[str, Any]:
    return {key: deepcopy(value) for key, value in values.items() if key != "defaults"}


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif isinstance(old, dict) and old:
            raise NotPlain(key)
        else:
            into[key] = value


def _set(values: dict[str, Any], parts: list[str], value: Any) -> None:
    """A dotted key, known to the schema or not."""
    *parents, last = parts
    for part in parents:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise NotPlain(part)
    if isinstance(values.get(last), dict) and value is not None:
        raise NotPlain(last)
    values[last] = value
