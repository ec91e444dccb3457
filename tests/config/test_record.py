"""Do records take exactly what pydantic takes, without asking it where a value is plainly legal?"""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.record import Refused
from launcher.config.record_check import Unsure
from launcher.config.record_judge import judge
from launcher.config.schema import Checkpoint, Data, Launch, Model, Run
from tests.factory import make_run

DOCUMENT = make_run(
    data={"name": "m", "kind": "mixture", "sources": [{"kind": "store", "path": "a"}]},
    launch={"name": "slurm", "env": {"A": "1"}, "modules": ["cuda"]},
).model_dump(mode="json")
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**62, 2**62 + 1, 2**70, 10**400, 0.0, -0.5, 0.5, 1.0, 1e308,
    float("nan"), float("inf"), "", "1", "adamw", "1f1b", "x.csv", "zb_v", "é", "\ud800", b"x",
    [], [1], [1, "2"], ["a"], ["tp"], [0.5, 1], (1, 2), ("a",), [None], {}, {"A": "1"}, {"A": 1},
    {1: "A"}, {"kind": "store", "path": "b"}, [{"kind": "store", "path": "b"}], {1, 2}, 3 + 1j,
]  # fmt: skip


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all values and groups."""
    if path:
        yield path
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield from leaves(node[key], (*path, key))


PLACES = list(leaves(DOCUMENT))


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    *parents, last = path
    for parent in parents:
        document = document[parent]
    document[last] = value


def by_pydantic(document: Any) -> Any:
    try:
        return Run.from_plain(judge(Run, document))
    except Refused as error:
        return [(one["type"], one["loc"]) for one in error.details]


def by_record(document: Any) -> Any:
    try:
        return Run.model_validate(document)
    except Refused as error:
        return [(one["type"], one["loc"]) for one in error.details]


def assert_same(document: Any) -> None:
    found, wanted = by_record(document), by_pydantic(document)
    assert found == wanted
    assert repr(found) == repr(wanted)  # 1 is not 1.0, nor True


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_a_record_takes_what_pydantic_takes(path):
    for value in ODD:
        document = copy.deepcopy(DOCUMENT)
        put(document, path, value)
        assert_same(document)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(ODD)), max_size=4))
def test_several_odd_values_are_all_found(changes):
    document = copy.deepcopy(DOCUMENT)
    for path, value in changes:
        try:
            put(document, path, value)
        except (TypeError, KeyError, IndexError):
            continue  # its group is gone
    assert_same(document)


def test_unknown_and_missing_keys_are_found():
    for change in ({"extra": 1}, {1: 2}):
        assert_same(DOCUMENT | change)
    assert_same({key: value for key, value in DOCUMENT.items() if key != "model"})


def test_a_plain_run_needs_no_pydantic():
    code = (
        "import sys; from launcher.cli import main; "
        "main(['plan', 'model=llama3_8b', 'hardware=h100x64']); "
        "sys.exit('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Text(str):
    """A text of another type."""


def test_what_is_not_plain_is_left_to_pydantic():
    with pytest.raises(Unsure):
        Data.from_plain({"name": Text("é"), "kind": "store"})
    assert type(Data.model_validate({"name": Text("é"), "kind": "store"}).name) is str


def test_a_record_cannot_be_changed():
    policy = Checkpoint(every_steps=5)
    with pytest.raises(FrozenInstanceError):
        policy.every_steps = 6
    with pytest.raises(FrozenInstanceError):
        del policy.every_steps
    assert policy == Checkpoint(every_steps=5) != Checkpoint()
    assert repr(Checkpoint(keep=1)).startswith("Checkpoint(every_steps=None, every_minutes=None")


def test_a_refusal_says_what_and_where():
    with pytest.raises(Refused, match=r"Checkpoint: keep: Input should be greater than or equal"):
        Checkpoint(keep=0)


def test_copies_are_equal_and_know_no_hash_of_another_process():
    run = make_run()
    assert hash(run.model) == hash(run.model.model_copy())
    for twin in (copy.deepcopy(run), pickle.loads(pickle.dumps(run)), run.model_copy()):
        assert twin == run
    assert pickle.loads(pickle.dumps(run.model)).__getstate__() == run.model.__getstate__()
    wider = run.model.model_copy(update={"num_layers": 7})
    assert (wider.num_layers, hash(wider) == hash(run.model)) == (7, False)


def test_a_dump_makes_the_same_record():
    run = Run.model_validate(DOCUMENT)
    assert run.model_dump(mode="json") == DOCUMENT
    assert Run.model_validate(run.model_dump()) == run
    assert Run.model_validate_json(json.dumps(DOCUMENT)) == run
    assert isinstance(run.model_dump()["parallelism"]["order"], tuple)


def test_every_record_has_defaults_of_its_own():
    one, other = Launch(name="local"), Launch(name="local")
    assert one.env == {}
    assert one.env is not other.env


def test_a_field_that_was_not_given_has_no_value():
    model = Model.model_construct(name="m")
    assert (model.name, model.norm) == ("m", "rmsnorm")
    with pytest.raises(AttributeError):
        _ = model.num_layers
