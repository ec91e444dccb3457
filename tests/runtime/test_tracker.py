"""What a run tells its tracker, and that it is one run there however often it is started."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.plan.run_files import RunFiles
from launcher.runtime.tracker import GuardedTracker, open_tracker
from tests.factory import make_run


def entry(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "grad_norm": 1.0}


def test_a_run_without_a_tracker_writes_nothing(tmp_path):
    tracker = open_tracker(make_run(), RunFiles(root=tmp_path), 0)
    tracker.add(entry(0, 3.0))
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_steps_that_are_done_again_stand_once_in_tensorboard(tmp_path):
    run = make_run(train={"steps": 8, "tracker": "tensorboard"})
    for first_step, last_step in ((0, 5), (3, 8)):
        tracker = open_tracker(run, RunFiles(root=tmp_path), first_step)
        for step in range(first_step, last_step):
            tracker.add(entry(step, 10.0 * first_step + step))
        tracker.add({"step": last_step - 1, "checkpoint": "step_5", "stall_s": 0.5})
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = {point.step: point.value for point in events.Scalars("loss")}
    assert [point.step for point in events.Scalars("loss")] == list(range(8))
    assert points == {0: 0, 1: 1, 2: 2, 3: 33, 4: 34, 5: 35, 6: 36, 7: 37}
    assert [point.step for point in events.Scalars("stall_s")] == [7]


class FakeWandb:
    """Takes what Weights & Biases would be told."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.told: list[dict[str, float]] = []
        self.num_finished = 0

    Settings = SimpleNamespace

    def init(self, **facts: Any) -> FakeWandb:
        self.begun.append(facts)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log(self, values: dict[str, float]) -> None:
        self.told.append(values)

    def finish(self) -> None:
        self.num_finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_every_start_is_the_same_run_of_weights_and_biases(tmp_path, wandb):
    run = make_run(train={"steps": 8, "tracker": "wandb", "tracker_project": "p"})
    for name, first_step in (("one", 0), ("one", 4), ("two", 0)):
        (tmp_path / name).mkdir(exist_ok=True)
        tracker = open_tracker(run, RunFiles(root=tmp_path / name), first_step)
        tracker.add(entry(first_step, 3.0))
        tracker.close()
    ids = [facts["id"] for facts in wandb.begun]
    assert ids[0] == ids[1] != ids[2]
    assert {facts["resume"] for facts in wandb.begun} == {"allow"}
    assert {facts["project"] for facts in wandb.begun} == {"p"}
    assert wandb.told[1] == {"step": 4, "loss": 3.0, "grad_norm": 1.0}
    assert wandb.num_finished == 3


def test_the_site_and_its_environment_stay_out_of_the_tracker(tmp_path, wandb):
    run = make_run(
        train={"steps": 8, "tracker": "wandb"}, launch={"name": "local", "env": {"A": "b"}}
    )
    open_tracker(run, RunFiles(root=tmp_path), 0)
    (facts,) = wandb.begun
    assert facts["config"]["train"]["steps"] == 8
    assert "launch" not in facts["config"]


def test_a_tracker_that_fails_is_said_once_and_ends_nothing(tmp_path, capfd):
    class Broken:
        def add(self, step: int, values: object) -> None:
            raise OSError("no space left")

        def close(self) -> None:
            raise AssertionError("closed after it failed")

    tracker = GuardedTracker("wandb", Broken)
    for step in range(3):
        tracker.add(entry(step, 1.0))
    tracker.close()
    assert capfd.readouterr().err.count("no space left") == 1


def test_a_tracker_that_is_not_installed_is_said_and_ends_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = open_tracker(
        make_run(train={"steps": 8, "tracker": "wandb"}), RunFiles(root=tmp_path), 0
    )
    tracker.add(entry(0, 1.0))
    assert "wandb is not told any more" in capfd.readouterr().err
