"""What is wrong with the values of a record, as pydantic says it."""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from launcher.config.record import Record, Refused
from launcher.config.record_marks import LISTED, Named, Range

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def judge(kind: Any, values: Any) -> dict[str, Any]:
    """What was given, with every value as records keep it; Refused where one is illegal."""
    try:
        found = _model_of(kind).model_validate(_plain(values))
    except ValidationError as error:
        raise Refused(kind.__name__, error.errors(include_url=False)) from error
    return found.model_dump(exclude_unset=True)


@cache
def _model_of(kind: Any) -> type[BaseModel]:
    """The same fields for pydantic; defaults stay the record's business."""
    fields: dict[str, Any] = {
        name: (_translated(field.marked), ... if field.is_required() else None)
        for name, field in kind.model_fields.items()
    }
    model: type[BaseModel] = create_model(kind.__name__, __config__=_STRICT, **fields)
    return model


def _translated(marked: Any) -> Any:
    """A type with its marks, in pydantic's words."""
    origin, inner = get_origin(marked), get_args(marked)
    if origin is Annotated:
        marks = [_mark(each) for each in inner[1:]]
        parts, annotated = (_translated(inner[0]), *marks), cast("Any", Annotated)
        return annotated[parts]
    if origin in (Union, UnionType):
        return Union[tuple([_translated(each) for each in inner])]  # noqa: UP007
    if origin is tuple:
        return tuple[_translated(inner[0]), ...]  # type: ignore[misc]
    is_record = isinstance(marked, type) and issubclass(marked, Record)
    if is_record:
        return _model_of(marked)
    return marked


def _mark(mark: Any) -> Any:
    if isinstance(mark, Range):
        return Field(**{name: bound for name, bound in mark._asdict().items() if bound is not None})
    if mark == LISTED:
        return Field(strict=False)
    return BeforeValidator(_known(mark)) if isinstance(mark, Named) else mark


def _known(name: Named) -> Any:
    def known(value: object) -> object:
        if name.is_known(value):
            return value
        raise PydanticCustomError("literal_error", name.reason)

    return known


def _plain(value: Any) -> Any:
    """Records among the values as groups of keys."""
    if isinstance(value, Record):
        return {key: _plain(each) for key, each in value}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(each) for each in value])
    return value
