"""Frozen keyword-only records that cost little to define: starting a command defines a hundred.

`dataclass(frozen=True, kw_only=True)` compiles six functions per class, most of which no command
ever calls. Here all records share them, and nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[Any], Any]:
        """For type checkers alone."""
        return lambda function: function


__all__ = ["dataclass_transform", "frozen"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def frozen(kind: type[T]) -> type[T]:
    """The same as that dataclass, for `fields`, `replace` and `asdict`, too."""
    made: Any = dataclass(init=False, repr=False, eq=False, match_args=False, kw_only=True)(kind)
    made.__init__, made.__repr__ = _init, _repr
    made.__eq__, made.__hash__ = _is_equal, _hash
    made.__setattr__, made.__delattr__ = _refuse, _refuse
    every = fields(made)
    made.__names = made.__dataclass_fields__.keys()
    made.__defaults = {one.name: one.default for one in every if one.default is not MISSING}
    made.__factories = {
        one.name: one.default_factory for one in every if one.default_factory is not MISSING
    }
    found: type[T] = made
    return found


def _init(self: Any, **values: Any) -> None:
    kind = type(self)
    if values.keys() == kind.__names:
        object.__setattr__(self, "__dict__", values)
        return
    own: dict[str, Any] = self.__dict__
    own.update(kind.__defaults)
    own.update(values)
    for name, make in kind.__factories.items():
        if name not in values:
            own[name] = make()
    names = kind.__dataclass_fields__
    if own.keys() != names.keys():
        missing, unknown = names.keys() - own.keys(), own.keys() - names.keys()
        raise TypeError(f"{kind.__name__}: missing {sorted(missing)}, unexpected {sorted(unknown)}")


def _values(record: Any) -> tuple[Any, ...]:
    of_record = record.__dict__
    return tuple([of_record[name] for name in record.__dataclass_fields__])


def _is_equal(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))


def _repr(self: Any) -> str:
    shown = [one.name for one in fields(self) if one.repr]
    words = [f"{name}={getattr(self, name)!r}" for name in shown]
    return f"{type(self).__qualname__}({', '.join(words)})"


def _refuse(self: Any, name: str, value: object = None) -> None:
    raise FrozenInstanceError(f"cannot change field {name!r}")
