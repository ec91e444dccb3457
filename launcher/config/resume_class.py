"""What a changed key means to a run that is resumed: every key of the schema carries one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

ClassName = Literal["safe", "resharding", "numerics", "forbidden"]


@dataclass(frozen=True)
class ResumeClass:
    """Mark of a key in the schema."""

    name: ClassName
    """safe: training goes on as it would have, but for the last bits of floating-point numbers.
    resharding: the same, and the saved state is cut anew for another layout.
    numerics: from here on another loss curve; said loudly and recorded.
    forbidden: the saved state has no meaning under the new value."""


T = TypeVar("T")
Safe = Annotated[T, ResumeClass("safe")]
Resharding = Annotated[T, ResumeClass("resharding")]
Numerics = Annotated[T, ResumeClass("numerics")]
Forbidden = Annotated[T, ResumeClass("forbidden")]
