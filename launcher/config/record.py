"""What every configuration record shares: strictness, and the ranges of its numbers.

Modules that define records evaluate their annotations (no `from __future__ import annotations`):
these are what values are checked by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from launcher.config.record_check import Unsure
from launcher.config.record_fields import Field, made, take_fields
from launcher.config.record_marks import Range
from launcher.frozen import dataclass_transform

Positive = Annotated[int, Range(ge=1, le=2**62)]
# Beyond any machine, and small enough that a mistyped number is answered at once.
Layers = Annotated[int, Range(ge=1, le=1_000)]
Nodes = Annotated[int, Range(ge=1, le=20_000)]
MOST_PER_NODE = 256
PerNode = Annotated[int, Range(ge=1, le=MOST_PER_NODE)]
Degree = Annotated[int, Range(ge=1, le=2**23)]
NumExperts = Annotated[int, Range(ge=1, le=2**12)]
Batch = Annotated[int, Range(ge=1, le=2**20)]
Width = Annotated[int, Range(ge=1, le=2**24)]
PositiveFloat = Annotated[float, Range(gt=0)]
# No machine is beyond these, and no arithmetic with them leaves the numbers.
Rate = Annotated[float, Range(ge=1, le=1e24)]
Wait = Annotated[float, Range(ge=0, le=1e6)]
Latency = Annotated[float, Range(gt=0, le=1e6)]
Fraction = Annotated[float, Range(ge=0, lt=1)]

Self = TypeVar("Self", bound="Record")


class Refused(ValueError):
    """Values that a record cannot have."""

    def __init__(self, kind: str, details: Sequence[Mapping[str, Any]]) -> None:
        lines = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in details]
        super().__init__(f"{kind}: {'; '.join(lines)}")
        self.details = details
        """Of every value: `type`, `loc`, `msg`, `input` and `ctx`, as pydantic has them."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(made,))
class Record:
    """Base of all records: no unknown keys, no silent conversion, no change after creation.

    The part of pydantic's interface that the code needs, without its start: what
    `record_check` takes is legal; for anything else pydantic is asked and says what is wrong.
    """

    __slots__ = ("__dict__", "_hash")
    model_fields: ClassVar[Mapping[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        cls.model_fields = take_fields(cls)

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(type(self).model_validate(values).__dict__)

    @classmethod
    def model_validate(cls: type[Self], values: Any) -> Self:
        """A record of these values, those of inner records as dictionaries; Refused if illegal."""
        try:
            return cls.from_plain(values)
        except Unsure:
            # Pydantic's start is a third of a plan's; here there will be something to say.
            from launcher.config.record_judge import judge

            return cls.from_plain(judge(cls, values))

    @classmethod
    def model_validate_json(cls: type[Self], text: str) -> Self:
        """The same of a text; ValueError, too, where it is no JSON."""
        return cls.model_validate(json.loads(text))

    @classmethod
    def from_plain(cls: type[Self], values: Any) -> Self:
        """The same where the values are legal for certain; Unsure for all others."""
        if type(values) is cls:
            return values
        if type(values) is not dict or not values.keys() <= cls.model_fields.keys():
            raise Unsure
        own = {}
        for name, field in cls.model_fields.items():
            if name in values:
                own[name] = field.check(values[name])
            elif field.is_required():
                raise Unsure
            else:
                own[name] = field.make_default()
        return _with(cls, own)

    @classmethod
    def model_construct(cls: type[Self], **values: Any) -> Self:
        """Of these values, unchecked, and of defaults."""
        fields = cls.model_fields.items()
        defaults = {name: one.make_default() for name, one in fields if not one.is_required()}
        known = defaults | values
        return _with(cls, {name: known[name] for name in cls.model_fields if name in known})

    def model_copy(self: Self, update: Mapping[str, Any] | None = None) -> Self:
        """The same with some values replaced, unchecked."""
        return _with(type(self), {**self.__dict__, **(update or {})})

    def model_dump(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """Values by name, those of inner records likewise; as JSON has them, lists for tuples."""
        return {name: _dumped(value, mode) for name, value in self}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.__dict__.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self)})"

    def __eq__(self, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        """Of all values; made once, since plans look costs up by model and device all the time."""
        try:
            known: int = self._hash  # type: ignore[attr-defined]  # a slot, no field
        except AttributeError:
            known = hash((type(self), *self.__dict__.values()))
            object.__setattr__(self, "_hash", known)
        return known

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot change field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        """Without its hash, which is another one in every process."""
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _with(kind: type[Self], values: dict[str, Any]) -> Self:
    record = kind.__new__(kind)
    record.__dict__.update(values)
    return record


def _dumped(value: Any, mode: Literal["python", "json"]) -> Any:
    if isinstance(value, Record):
        return value.model_dump(mode)
    if isinstance(value, tuple):
        parts = [_dumped(each, mode) for each in value]
        return parts if mode == "json" else tuple(parts)
    return dict(value) if isinstance(value, dict) else value
