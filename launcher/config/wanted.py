"""What the schema wants at a key, in words, from the key's annotation."""

from __future__ import annotations

import types
import typing
from typing import Any

from launcher.config.schema import Record

WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false",
    dict: "a group of names and texts",
}  # fmt: skip

PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def wanted_words(annotation: Any, *, is_in_list: bool = False) -> str:
    """`a whole number or null`, `a list of numbers`; of one member of a list, what that must be."""
    leaves = alternatives(annotation)
    items = [part for part in leaves if part in PLURALS]
    if has_list(annotation) and not is_in_list:
        wanted = [f"a list of {PLURALS[items[0]]}" if items else "a list"]
    else:
        wanted = [WORDS[part] for part in leaves if part in WORDS]
        if any(isinstance(part, type) and issubclass(part, Record) for part in leaves):
            wanted.append("a group of keys")
    if type(None) in leaves and not is_in_list:
        wanted.append("null")
    return " or ".join(wanted) or "another type"


def given_words(given: Any) -> str:
    """What was written, with its article."""
    noun = type_name(given)
    return noun if noun in ("text", "null") else f"a {noun}"


def type_name(given: Any) -> str:
    """The kind of a value, in words."""
    names = {bool: "truth value", int: "number", float: "number with a fraction", str: "text"}
    names |= {list: "list", dict: "group of keys", type(None): "null"}
    return names.get(type(given), type(given).__name__)


def has_list(annotation: Any) -> bool:
    """Whether one of the alternatives is a list."""
    origin = typing.get_origin(annotation)
    if origin is tuple:
        return True
    if origin is typing.Annotated:
        return has_list(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return any(has_list(member) for member in typing.get_args(annotation))
    return False


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Members of a union, unions in unions included; the type itself otherwise."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(
            leaf for member in typing.get_args(annotation) for leaf in alternatives(member)
        )
    if typing.get_origin(annotation) is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is tuple:
        return alternatives(typing.get_args(annotation)[0])
    return (typing.get_origin(annotation) or annotation,) if _is_dict(annotation) else (annotation,)


def _is_dict(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict
