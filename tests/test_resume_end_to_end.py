"""A run killed in the middle goes on as if nothing had happened, anywhere and by any way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.node.processes import descendants
from tests.test_end_to_end import SHORT, command, is_alive, launch

JOB = (*SHORT, "hardware.device=cpu", "parallelism.pp=1", "parallelism.tp=2", "train.steps=40",
       "train.num_microbatches=2", "checkpoint.every_steps=4", "checkpoint.keep=3",
       "model.dropout=0.1", "train.tracker=tensorboard")  # fmt: skip
SAVED = "step_00000004"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The same job undisturbed and killed, and copies of the killed one."""

    whole: Path
    killed: Path
    """Use it once."""
    copy: Callable[[], Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("resume")
    done = launch("--run-dir", "whole", *JOB, cwd=root)
    assert done.returncode == 0, done.stderr
    process = start(root, "--run-dir", "killed", *JOB)
    wait_for(lambda: (root / "killed" / "checkpoints" / SAVED).exists(), process)
    kill_all(process)
    kept = root / "kept"
    shutil.copytree(root / "killed", kept)
    numbers = iter(range(100))

    def copy() -> Path:
        path = root / f"copy{next(numbers)}"
        shutil.copytree(kept, path)
        return path

    return Runs(whole=root / "whole", killed=root / "killed", copy=copy)


def start(cwd: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*words), cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(is_true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while not is_true():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """As a power cut does: every process at once, none of them warned."""
    family = [*reversed(descendants(process.pid)), process.pid]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.01)


def entries(run: Path, key: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [entry for line in lines if key in (entry := json.loads(line))]


def losses(run: Path) -> list[float]:
    found = entries(run, "loss")
    assert [entry["step"] for entry in found] == list(range(40)), "every step once, in order"
    return [entry["loss"] for entry in found]


def told_losses(run: Path) -> list[float]:
    """What the run's tracker shows."""
    points = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("loss")
    assert [point.step for point in points] == list(range(40)), "every step once, in order"
    return [point.value for point in points]


def test_it_was_killed_in_the_middle(runs):
    assert not (runs.killed / "summary.json").exists()
    assert len(entries(runs.whole, "loss")) == 40


def test_resumed_in_the_same_layout_every_loss_is_the_same_bit_for_bit(runs):
    run = runs.copy()
    done = launch("resume", str(run), cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "continuing after step " in done.stderr
    assert "step 40/40" in done.stderr
    assert losses(run) == losses(runs.whole)
    assert told_losses(run) == told_losses(runs.whole) == pytest.approx(losses(run), rel=1e-6)
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (run, runs.whole))
    assert ours["outcome"] == theirs["outcome"]
    assert (run / "attempts" / "0001" / "run.yaml").exists()
    # And nothing is left to do.
    again = launch("resume", str(run), cwd=run.parent)
    assert (again.returncode, again.stdout[:10]) == (0, "finished: ")
    diff = ("checkpoints", str(run), "--diff", "40", str(runs.whole / "checkpoints/step_00000040"))
    same = launch(*diff, cwd=run.parent)
    assert (same.returncode, same.stdout.splitlines()[-1]) == (0, "equal, bit by bit")


def test_resumed_in_another_layout_the_losses_stay_the_same(runs):
    run = runs.copy()
    words = ("parallelism.tp=1", "parallelism.pp=2", "parallelism.zero_stage=0")
    done = launch("resume", str(run), *words, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "resharding  parallelism.tp: 2 -> 1" in done.stderr
    assert "NUMBERS" not in done.stderr
    assert losses(run) == pytest.approx(losses(runs.whole), rel=1e-4)
    listed = launch("checkpoints", str(run), "--verify", "--json", cwd=run.parent)
    assert listed.returncode == 0
    rows = json.loads(listed.stdout)["checkpoints"]
    assert [row["step"] for row in rows] == [32, 36, 40]
    assert {(row["layout"]["tp"], row["layout"]["pp"]) for row in rows} == {(1, 2)}


def test_the_job_itself_started_again_goes_on(runs):
    """As Slurm does with a requeued job: nobody calls `launch resume`."""
    script = ["bash", str(runs.killed / "command.sh")]
    text = (runs.killed / "run.yaml").read_text()
    (runs.killed / "run.yaml").write_text(text.replace("rope_theta: ", "rope_theta: 1"))
    refused = subprocess.run(script, capture_output=True, timeout=240)
    assert refused.returncode != 0, "what was saved has no meaning under what run.yaml says now"
    assert "[forbidden-on-resume]" in (runs.killed / "logs" / "rank_0.log").read_text()
    (runs.killed / "run.yaml").write_text(text)
    done = subprocess.run(script, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert losses(runs.killed) == losses(runs.whole)
    assert entries(runs.killed, "resumed_from")


def test_a_running_job_saves_on_demand_and_is_not_resumed_twice(runs):
    run = runs.copy()
    before = {path.name for path in (run / "checkpoints").iterdir()}
    words = ("train.steps=100000", "checkpoint.every_steps=null", "checkpoint.every_minutes=60")
    process = start(run.parent, "resume", str(run), *words)
    try:
        wait_for(lambda: bool(entries(run, "resumed_from")), process)
        second = launch("resume", str(run), cwd=run.parent)
        assert second.returncode == 4
        assert f"[run-in-use]: process {process.pid} on " in second.stderr
        asked = launch("checkpoint", str(run), cwd=run.parent)
        assert asked.returncode == 0, asked.stderr
        name = Path(asked.stdout.strip()).name
        assert name not in before
        assert name in {path.name for path in (run / "checkpoints").iterdir()}
    finally:
        kill_all(process)
    gone = launch("checkpoint", str(run), cwd=run.parent)
    assert gone.returncode == 4
    assert "[not-running]" in gone.stderr
    # The killed one holds nothing: a third may go on.
    third = launch("resume", str(run), "--dry-run", cwd=run.parent)
    assert third.returncode == 0, third.stderr
    assert f"continuing after step {int(name[5:])} " in third.stderr


def test_a_run_whose_checkpoints_are_all_damaged_starts_nothing_by_any_way(runs):
    run = runs.copy()
    for manifest in (run / "checkpoints").glob("step_*/manifest.json"):
        manifest.write_text("{")
    done = launch("resume", str(run), cwd=run.parent)
    assert done.returncode == 2
    assert "[no-readable-checkpoint]" in done.stderr
    assert "--from-scratch" in done.stderr
    lines = (run / "metrics.jsonl").read_text()
    script = (run / "command.sh").read_text().replace(str(runs.whole.parent / "killed"), str(run))
    (run / "command.sh").write_text(script)
    again = subprocess.run(["bash", str(run / "command.sh")], capture_output=True, timeout=240)
    assert again.returncode != 0
    assert "--from-scratch" in (run / "logs" / "rank_0.log").read_text()
    assert (run / "metrics.jsonl").read_text() == lines
