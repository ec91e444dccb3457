"""Runs that are killed, asked to end, asked to save or out of disk, and what continues them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoint.reader import list_checkpoints, newest_verified
from launcher.node.processes import descendants
from launcher.plan.run_files import RunFiles
from tests.test_end_to_end import SHORT, _workers, launch, start

STEPS = 400
LAYOUT = (
    "parallelism.tp=1", "parallelism.pp=1", "parallelism.dp=2",
    f"train.steps={STEPS}", "train.validate_every=7", *SHORT,
)  # fmt: skip


def entries(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    found = [(entry["step"], entry["loss"]) for entry in entries(run) if "loss" in entry]
    assert len(found) == len(dict(found)), "a step is there twice"
    return dict(found)


def wait_for(seen, process: subprocess.Popen[bytes], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline, "it did not happen"
        assert process.poll() is None, "the run has ended"
        time.sleep(0.05)


def test_a_run_saves_by_steps_and_at_its_end(tmp_path):
    result = launch(
        "--run-dir", "run", "checkpoint.every_steps=15", *LAYOUT, "train.steps=40", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    names = list_checkpoints(run / "checkpoints")
    assert names == ["step_00000040", "step_00000030", "step_00000015"]
    assert newest_verified(run / "checkpoints").refused == ()
    saved = [entry for entry in entries(run) if "checkpoint" in entry]
    assert [entry["step"] for entry in saved] == [14, 29, 39]
    assert not any("checkpoint_error" in entry for entry in saved)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_launcher_that_is_asked_to_end_has_the_job_save_first(tmp_path, number):
    run = tmp_path / "run"
    process = start("--run-dir", "run", *LAYOUT, cwd=tmp_path)
    family = descendants(process.pid)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    (name,) = list_checkpoints(run / "checkpoints")
    outcome = json.loads((run / "summary.json").read_text())["outcome"]
    assert outcome["status"] == "stopped"
    assert name == f"step_{outcome['steps']:08d}"
    assert max(losses(run)) == outcome["steps"] - 1
    said = (tmp_path / "err").read_text()
    assert f"stopped after {outcome['steps']} steps, saved as {name}; `launch resume" in said
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


def test_one_rank_that_is_asked_to_end_ends_all_at_the_same_step(tmp_path):
    process = start("--run-dir", "run", *LAYOUT, cwd=tmp_path)
    os.kill(_workers(process.pid)[1], signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert newest_verified(tmp_path / "run" / "checkpoints").checkpoint is not None
    assert not list((tmp_path / "run" / "logs").glob("rank_*.error.json"))


def test_a_save_that_is_asked_for_is_answered_and_training_goes_on(tmp_path):
    files = RunFiles(root=tmp_path / "run")
    process = start("--run-dir", "run", "checkpoint=none", *LAYOUT, cwd=tmp_path)
    files.save_request.touch()
    wait_for(lambda: list_checkpoints(files.checkpoints), process)
    assert not files.save_request.exists()
    saved_at = len(losses(files.root))
    wait_for(lambda: len(losses(files.root)) > saved_at, process)
    process.kill()
    process.wait()
