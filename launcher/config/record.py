"""What every configuration record shares: strictness, and the ranges of its numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1, le=2**62)]
# Beyond any machine, and small enough that a mistyped number is answered at once.
Layers = Annotated[int, Field(ge=1, le=1_000)]
Nodes = Annotated[int, Field(ge=1, le=20_000)]
PerNode = Annotated[int, Field(ge=1, le=256)]
Batch = Annotated[int, Field(ge=1, le=2**20)]
Width = Annotated[int, Field(ge=1, le=2**24)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Record(BaseModel):
    """Base of all records: no unknown keys, no silent conversion, no change after creation."""

    # Validators are built when they are first used: of a run once, not of each of its groups first.
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, defer_build=True
    )
    __slots__ = ("_hash",)

    def __hash__(self) -> int:
        """Of all values; made once, since plans look costs up by model and device all the time."""
        known: int | None = getattr(self, "_hash", None)
        if known is None:
            known = hash((type(self), *self.__dict__.values()))
            object.__setattr__(self, "_hash", known)
        return known
