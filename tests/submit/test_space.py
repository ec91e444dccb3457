"""Is a run that would fill its disk refused before it starts, with what would fit?"""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest

from launcher.config.schema import Checkpoint
from launcher.errors import SubmissionRefused
from launcher.plan.records import Plan
from launcher.submit import space
from launcher.submit.space import refuse_if_disk_is_small
from tests.submit.cases import planned

Usage = namedtuple("Usage", "total used free")


def plan_with(**policy: object) -> Plan:
    plan = planned(**{"train.steps": 100})
    run = plan.run.model_copy(update={"checkpoint": Checkpoint(**policy)})
    return replace(plan, run=run, checkpoint_bytes=2**30)


@pytest.fixture
def free(monkeypatch):
    def set_free(gib: float) -> None:
        usage = Usage(0, 0, int(gib * 2**30))
        monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage)

    return set_free


def test_enough_room_is_no_matter(free, tmp_path):
    free(4)
    refuse_if_disk_is_small(plan_with(every_steps=10, keep=3), tmp_path / "run")
    free(0)
    refuse_if_disk_is_small(plan_with(), tmp_path / "run")


def test_too_little_room_is_refused_with_field_needed_free_and_fix(free, tmp_path):
    free(3.5)
    with pytest.raises(SubmissionRefused) as caught:
        refuse_if_disk_is_small(plan_with(every_steps=10, keep=3), tmp_path / "run")
    assert str(caught.value) == (
        "checkpoint.keep=3 [checkpoints-fit-disk]: 4 checkpoints of 1 GiB, the one being written "
        f"included, need 4 GiB, and {tmp_path / 'run'} has 3.5 GiB free. Legal here: 1, 2. "
        "Try checkpoint.keep=2."
    )


def test_without_keep_all_of_them_count(free, tmp_path):
    free(9)
    with pytest.raises(SubmissionRefused, match=r"keep=null .* 10 checkpoints .* need 10.0 GiB"):
        refuse_if_disk_is_small(plan_with(every_steps=10), tmp_path / "run")


def test_where_not_even_one_fits_another_disk_is_named(free, tmp_path):
    free(0.5)
    with pytest.raises(SubmissionRefused, match=r"Try --run-dir on a file system"):
        refuse_if_disk_is_small(plan_with(every_steps=10, keep=1), tmp_path / "run")


def test_a_resumed_run_counts_what_it_has(free, tmp_path):
    held = tmp_path / "checkpoints"
    held.mkdir()
    with (held / "file").open("wb") as stream:
        stream.truncate(3 * 2**30)
    free(1)
    plan = plan_with(every_steps=10, keep=3)
    refuse_if_disk_is_small(plan, tmp_path, first_step=30)
    with pytest.raises(SubmissionRefused):
        refuse_if_disk_is_small(plan, tmp_path / "new", first_step=0)
    shutil.rmtree(held)
