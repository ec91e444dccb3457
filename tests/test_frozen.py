"""Frozen records: the same as frozen keyword-only dataclasses, to all who use them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace

import pytest

from launcher.frozen import frozen


@frozen
class Ours:
    """As the product makes them."""

    tp: int
    names: tuple[str, ...] = ("a", "b")
    table: dict[str, int] = field(default_factory=dict)
    hidden: str = field(default="x", repr=False)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """As dataclasses are."""

    tp: int
    names: tuple[str, ...] = ("a", "b")
    table: dict[str, int] = field(default_factory=dict)
    hidden: str = field(default="x", repr=False)


@frozen
class Pair:
    """Hashable."""

    first: int
    second: float = 0.5


def test_values_defaults_and_text_are_those_of_a_dataclass():
    ours, plain = Ours(tp=2, hidden="y"), Plain(tp=2, hidden="y")
    assert asdict(ours) == asdict(plain)
    assert repr(ours) == repr(plain).replace("Plain", "Ours")
    assert asdict(replace(ours, tp=4)) == asdict(replace(plain, tp=4))
    assert Ours(tp=1).table is not Ours(tp=1).table


def test_equal_values_are_equal_and_hash_alike():
    assert Pair(first=1) == Pair(first=1, second=0.5) != Pair(first=2)
    assert hash(Pair(first=1)) == hash(Pair(first=1, second=0.5))
    assert Ours(tp=1) != Plain(tp=1)


@pytest.mark.parametrize("make", [Ours, Plain])
def test_a_record_never_changes(make):
    record = make(tp=1)
    with pytest.raises(FrozenInstanceError, match="tp"):
        record.tp = 2
    with pytest.raises(FrozenInstanceError, match="tp"):
        del record.tp


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, r"Ours: missing \['tp'\], unexpected \[\]"),
        ({"pt": 1}, r"Ours: missing \['tp'\], unexpected \['pt'\]"),
        ({"tp": 1, "pt": 1}, r"Ours: missing \[\], unexpected \['pt'\]"),
    ],
)
def test_missing_and_unknown_names_are_refused(values, reason):
    with pytest.raises(TypeError, match=reason):
        Ours(**values)
