"""Values of records checked without pydantic, which takes longer to start than a whole plan.

It knows no mistakes: whatever is not legal for certain raises Unsure, and `record_judge` asks
pydantic. A test compares both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from launcher.config.record_marks import LISTED, Named, Range

Check = Callable[[Any], Any]
"""Returns a legal value as a record keeps it; raises Unsure for any other."""

_LARGEST = 2**63


class Unsure(Exception):
    """A value that is illegal, or only unusual."""


@cache
def check_of(marked: Any) -> Check:
    """The check of a type with its marks; records check themselves (`from_plain`)."""
    origin = get_origin(marked)
    if origin is Annotated:
        inner, *marks = get_args(marked)
        check = check_of(inner)
        for mark in marks:
            check = _marked(check, mark)
        return check
    if origin in (Union, UnionType):
        return _either(get_args(marked))
    if origin is Literal:
        return _among(get_args(marked))
    if origin is tuple:
        return _tuple(check_of(get_args(marked)[0]))
    if origin is dict:
        return _texts
    plain = _PLAIN.get(marked)
    found: Check = plain if plain is not None else marked.from_plain
    return found


def _marked(check: Check, mark: object) -> Check:
    if isinstance(mark, Range):
        return _in_range(check, mark)
    if mark == LISTED:
        return lambda value: check(tuple(value) if type(value) is list else value)
    if isinstance(mark, Named):
        return _named(check, mark)
    return check


def _in_range(check: Check, bounds: Range) -> Check:
    ge, gt, le, lt = bounds

    def ranged(value: Any) -> Any:
        number = check(value)
        if (
            (ge is not None and number < ge)
            or (gt is not None and number <= gt)
            or (le is not None and number > le)
            or (lt is not None and number >= lt)
        ):
            raise Unsure
        return number

    return ranged


def _named(check: Check, name: Named) -> Check:
    def known(value: Any) -> Any:
        if not name.is_known(value):
            raise Unsure
        return check(value)

    return known


def _either(members: Sequence[Any]) -> Check:
    """One of the members; None is looked for first."""
    checks = [check_of(each) for each in members if each is not NoneType]
    if NoneType in members and len(checks) == 1:
        (only,) = checks
        return lambda value: None if value is None else only(value)

    def either(value: Any) -> Any:
        if value is None and NoneType in members:
            return None
        for check in checks:
            try:
                return check(value)
            except Unsure:
                continue
        raise Unsure

    return either


def _among(choices: tuple[Any, ...]) -> Check:
    def chosen(value: Any) -> Any:
        if type(value) is not str or value not in choices:
            raise Unsure
        return value

    return chosen


def _tuple(check: Check) -> Check:
    def several(value: Any) -> Any:
        if type(value) is not tuple:
            raise Unsure
        return tuple([check(each) for each in value])

    return several


def _texts(value: Any) -> dict[str, str]:
    if type(value) is not dict:
        raise Unsure
    return {_text(key): _text(each) for key, each in value.items()}


def _text(value: Any) -> str:
    if type(value) is not str:
        raise Unsure
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise Unsure
    return value


def _number(value: Any) -> float:
    if type(value) is float and isfinite(value):
        return value
    if type(value) is int and -_LARGEST < value < _LARGEST:
        return float(value)
    raise Unsure


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise Unsure
    return value


_PLAIN: dict[Any, Check] = {int: _whole, float: _number, str: _text, bool: _truth}
