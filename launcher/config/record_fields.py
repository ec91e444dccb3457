"""Fields of records, as the schema writes them: a type with its marks, and a default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from launcher.config.record_check import Check, check_of


class Made(NamedTuple):
    """A default that every record gets its own of."""

    make: Callable[[], Any]


REQUIRED: Any = object()
"""In the place of a default: there is none."""


class Field:
    """One key of a record."""

    __slots__ = ("_check", "annotation", "default", "marked", "metadata")

    def __init__(self, marked: Any, default: Any) -> None:
        self.marked = marked
        """Type and marks, as written."""
        self.annotation = marked
        """The type by itself."""
        self.metadata: tuple[Any, ...] = ()
        """Marks of the whole field."""
        self.default = default
        self._check: Check | None = None
        if get_origin(marked) is Annotated:
            self.annotation, *marks = get_args(marked)
            self.metadata = tuple(marks)

    def is_required(self) -> bool:
        """Whether a value has to be given."""
        return self.default is REQUIRED

    def check(self, value: Any) -> Any:
        """A legal value as a record keeps it; Unsure for any other."""
        if self._check is None:
            self._check = check_of(self.marked)
        return self._check(value)

    def make_default(self) -> Any:
        """The value where none is given."""
        return self.default.make() if isinstance(self.default, Made) else self.default


def made(make: Callable[[], Any]) -> Any:
    """A default that is made anew for every record."""
    return Made(make)


def take_fields(kind: type) -> dict[str, Field]:
    """The fields that a class writes down; their defaults are no attributes of it any longer, so
    that a record without a field has no value there.
    """
    found = {}
    for name, marked in kind.__annotations__.items():
        found[name] = Field(marked, kind.__dict__.get(name, REQUIRED))
        if name in kind.__dict__:
            delattr(kind, name)
    return found
