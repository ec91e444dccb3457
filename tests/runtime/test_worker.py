"""How a rank starts, and what it leaves behind when it has done its work."""

import gc
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from launcher.runtime import build, train, worker
from launcher.runtime.checkpoint import board, restore


@pytest.fixture(autouse=True)
def process_as_before():
    """Handlers and garbage collection are this process's own."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)
    gc.unfreeze()
    gc.enable()


def frozen() -> SimpleNamespace:
    launch = SimpleNamespace(hang_timeout_s=None)
    run = SimpleNamespace(launch=launch, train=SimpleNamespace(init_from=None))
    return SimpleNamespace(run=run)


def test_a_request_to_save_does_not_kill_a_rank_that_has_saved(monkeypatch, tmp_path):
    # At its end Python gives handlers of its own back to the system, which would kill.
    for name in ("read_place", "end_with_parent", "log_to", "take_directory", "work"):
        monkeypatch.setattr(
            worker, name, lambda *arguments: SimpleNamespace(rank=0, local_world_size=1)
        )
    monkeypatch.setattr(worker, "read_frozen", lambda files: frozen())
    worker.main(str(tmp_path))
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_garbage_is_collected_from_the_first_step_on_and_not_before(monkeypatch, tmp_path):
    seen: list[tuple[str, bool, bool]] = []

    def note(name):
        def noting(*arguments, **named):
            seen.append((name, gc.isenabled(), gc.get_freeze_count() > 0))
            return SimpleNamespace(
                rank=0,
                world_size=1,
                local_world_size=1,
                engine=None,
                name=None,
                progress=SimpleNamespace(step=0),
            )

        return noting

    for name in ("end_with_parent", "log_to", "take_directory", "limit_groups", "name_nodes"):
        monkeypatch.setattr(worker, name, lambda *arguments: None)
    for home, name in (
        (worker, "read_place"), (worker, "join_job"), (worker, "leave_job"),
        (build, "build_trainer"), (board, "Board"), (restore, "restore"), (train, "train"),
    ):  # fmt: skip
        monkeypatch.setattr(home, name, note(name))
    monkeypatch.setattr(worker, "read_frozen", lambda files: frozen())
    monkeypatch.setattr(
        worker,
        "Watchdog",
        lambda *arguments: SimpleNamespace(
            start=lambda: None, stop=lambda: None, wait_if_fired=lambda: None
        ),
    )
    gc.unfreeze()
    worker.main(str(tmp_path))
    states = {name: state for name, *state in seen}
    assert states["join_job"] == states["build_trainer"] == states["restore"] == [False, False]
    assert states["train"] == [True, True]


LEAVING = """
import atexit, os
from launcher.runtime.process import leave
atexit.register(os.abort)  # as a library that ends a process which has done its work
print("said")
leave({code})
"""


@pytest.mark.parametrize("code", [0, 1])
def test_a_rank_that_leaves_says_everything_and_is_ended_by_nobody_else(code):
    words = [sys.executable, "-c", LEAVING.format(code=code)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, "said\n")


def test_a_rank_looks_after_its_neighbours_from_the_start(monkeypatch, tmp_path):
    seen = []
    for name in ("end_with_parent", "log_to", "take_directory"):
        monkeypatch.setattr(worker, name, lambda *arguments: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(worker, "read_frozen", lambda files: frozen())
    monkeypatch.setattr(worker, "work", lambda *arguments: seen.append("work"))

    class Neighbours:
        def __init__(self, files, place, pulse):
            seen.append(place.local_world_size)

        def start(self):
            seen.append("started")

    monkeypatch.setattr(worker, "Neighbours", Neighbours)
    worker.main(str(tmp_path))
    assert seen == [4, "started", "work"]
