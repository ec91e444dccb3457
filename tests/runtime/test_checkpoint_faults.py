"""Saving that is killed, runs out of disk or is damaged afterwards loses nothing."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import time
from pathlib import Path

import pytest

from launcher.checkpoint.publish import read_latest
from launcher.checkpoint.reader import list_checkpoints, newest_verified, step_of, verify
from launcher.errors import RunFailed
from launcher.runtime.checkpoint.restore import restore
from launcher.runtime.progress import Progress
from tests.runtime.fake_engine import SAMPLES, FakeEngine, make_board, make_files, make_saver
from tests.runtime.saver_loop import save_forever
from tests.runtime.spawn import PRELOAD

KILLS = 120
POINTS = 24
"""Fault points of two saves, about: kills at later ones never come."""


# Killed at any moment


def test_kill_minus_9_at_any_moment_loses_nothing_that_was_saved(tmp_path):
    seed = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(2**32)))
    print(f"FAULT_SEED={seed}")
    generator = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    root, saved_so_far = tmp_path / "run", 0
    for number in range(KILLS):
        folder = tmp_path / f"attempt_{number}"
        folder.mkdir()
        victim = generator.randrange(2)
        die_at = generator.randrange(1, POINTS) if number % 2 else None
        processes = [
            context.Process(
                target=save_forever, daemon=True,
                args=(rank, str(root), str(folder), die_at if rank == victim else None),
            )
            for rank in range(2)
        ]  # fmt: skip
        for process in processes:
            process.start()
        kill(processes[victim], folder, None if die_at else generator.uniform(0.0, 0.08))
        time.sleep(generator.uniform(0.0, 0.02))  # the other one goes on until it is ended too
        kill(processes[1 - victim], folder, 0.0)
        saved_so_far = check(root, folder, saved_so_far, number)
    assert saved_so_far > KILLS / 4, "hardly anything was saved between the kills"


def kill(process, folder: Path, after_s: float | None) -> None:
    """Some time after its start, or (None) when it has killed itself."""
    if after_s is None:
        process.join(timeout=10.0)
    else:
        deadline = time.monotonic() + 20.0
        while not list(folder.glob("started_*")) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(after_s)
    process.kill()
    process.join()


def check(root: Path, folder: Path, before: int, number: int) -> int:
    """What the killed job had found, and what the next one will find; the newest step saved."""
    for path in folder.glob("started_*"):
        if path.stat().st_size:  # killed between opening and writing it, maybe
            step, is_right, num_refused = json.loads(path.read_text())
            assert is_right, f"attempt {number}: step {step} came back wrong"
            assert step >= before, f"attempt {number}: {before} was saved, {step} was found"
            assert num_refused == 0, f"attempt {number}: half a checkpoint was published"
    noted = folder / "saved"
    saved = [int(line) for line in noted.read_text().split()] if noted.exists() else []
    newest = max([before, *saved])
    choice = newest_verified(root / "checkpoints")
    assert not choice.refused, f"attempt {number}"
    if newest:
        assert choice.checkpoint is not None
        found = choice.checkpoint.manifest.step
        assert found >= newest, f"attempt {number}: step {newest} was saved, {found} is there"
        latest = read_latest(root / "checkpoints")
        assert latest is None or verify(root / "checkpoints" / latest) is None
        assert latest is None or step_of(latest) >= newest - 1
    return newest if choice.checkpoint is None else choice.checkpoint.manifest.step


# A full disk


POINT_NAMES = (
    "file-block", "file-written", "file-flushed", "file-done", "all-files", "text-half",
    "folder-flushed", "before-rename",
)  # fmt: skip


@pytest.mark.parametrize("name", POINT_NAMES)
def test_a_full_disk_is_said_and_older_checkpoints_stay(tmp_path, name):
    is_full = False

    def fault(point: str) -> None:
        if is_full and point == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files, engine = make_files(tmp_path), FakeEngine()
    saver = make_saver(engine, files, make_board(), None, fault)
    for step in (1, 2, 3):
        saver.wait()
        is_full = step == 2
        engine.become(step)
        saver.save(Progress(step=step, consumed_samples=SAMPLES * step), 0)
    saver.wait()
    errors = {outcome.step: outcome.error for outcome in saver.outcomes()}
    assert errors == {1: None, 2: errors[2], 3: None}
    assert "No space left on device" in str(errors[2])
    assert list_checkpoints(files.checkpoints) == ["step_00000003", "step_00000001"]
    assert not list(files.checkpoints.glob(".*")), "space is given back"
    assert verify(files.checkpoints / "step_00000001") is None


def test_a_limit_of_the_system_on_files_is_such_an_error(tmp_path):
    files, engine = make_files(tmp_path), FakeEngine()
    saver = make_saver(engine, files, make_board())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        saver.save(Progress(step=1), 0)
        saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (outcome,) = saver.outcomes()
    assert "File too large" in str(outcome.error)
    assert list(files.checkpoints.iterdir()) == []


def test_a_job_that_starts_on_a_full_disk_continues_without_a_latest(tmp_path, monkeypatch):
    def full(*ignored: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = make_files(tmp_path)
    save_steps(files, 10)
    monkeypatch.setattr("launcher.checkpoint.publish.write_durably", full)
    assert restore(FakeEngine(), files, make_board()).name == "step_00000010"
    assert read_latest(files.checkpoints) is None


# Damage afterwards


def save_steps(files, *steps: int, **policy: int) -> None:
    engine = FakeEngine()
    saver = make_saver(engine, files, make_board(), **policy)
    for step in steps:
        engine.become(step)
        saver.save(Progress(step=step, consumed_samples=SAMPLES * step), 7 * step)
    saver.wait()
    assert [outcome.error for outcome in saver.outcomes()] == [None] * len(steps)


def test_a_damaged_newest_is_refused_by_name_and_the_one_before_it_continues(tmp_path, capsys):
    files, engine = make_files(tmp_path), FakeEngine()
    save_steps(files, 10, 20, 30)
    path = files.checkpoints / "step_00000030" / "rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    start = restore(engine, files, make_board())
    assert start.name == "step_00000020"
    assert start.progress == Progress(step=20, consumed_samples=20 * SAMPLES)
    assert start.consumed_tokens == 140
    assert engine.is_at(20)
    assert engine.loaded == 20
    assert (
        "step_00000030 is refused: rank_00000.safetensors: its checksum" in capsys.readouterr().err
    )
    # It is out of the way, not gone, and the steps after it can be saved again.
    assert (files.checkpoints / "refused_step_00000030.1").is_dir()
    assert read_latest(files.checkpoints) == "step_00000020"
    save_steps(files, 30)
    assert restore(engine, files, make_board()).name == "step_00000030"


def test_a_run_that_has_saved_never_starts_again_in_silence(tmp_path):
    files = make_files(tmp_path)
    save_steps(files, 10)
    (files.checkpoints / "step_00000010" / "manifest.json").write_text("{")
    with pytest.raises(RunFailed, match=r"step_00000010: manifest\.json.*--from-scratch"):
        restore(FakeEngine(), files, make_board())
    (files.checkpoints / "step_00000010" / "manifest.json").unlink()
    (files.checkpoints / "step_00000010").rename(tmp_path / "moved_away")
    with pytest.raises(
        RunFailed, match=r"start from the beginning: `launch resume .* --from-scratch`"
    ):
        restore(FakeEngine(), files, make_board())
    files.has_saved.unlink()
    assert restore(FakeEngine(), files, make_board()).name is None


def test_the_newest_few_and_every_mth_are_kept(tmp_path):
    files = make_files(tmp_path)
    save_steps(files, *range(1, 9), keep=2, keep_every=3)
    assert [step_of(name) for name in list_checkpoints(files.checkpoints)] == [8, 7, 6, 3]


def test_numbers_go_on_after_a_resume(tmp_path):
    files = make_files(tmp_path)
    save_steps(files, 1, 2, keep=1, keep_every=3)
    board = make_board()
    start = restore(FakeEngine(), files, board)
    assert start.number == 2
    saver = make_saver(FakeEngine(), files, board, start, keep=1, keep_every=3)
    for step in (3, 4):
        saver.save(Progress(step=step), 0)
    saver.wait()
    assert [step_of(name) for name in list_checkpoints(files.checkpoints)] == [4, 3]
