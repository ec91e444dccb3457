"""Is a tree of processes gone within five seconds, however stubborn it is?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.node.processes import descendants, end_tree

# A process that ignores every polite signal and starts two more of its kind, in sessions of
# their own as torchrun's workers are; each notes its id.
STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
folder, depth = sys.argv[1], int(sys.argv[2])
for _ in range(2 if depth else 0):
    subprocess.Popen([sys.executable, __file__, folder, str(depth - 1)], start_new_session=True)
open(os.path.join(folder, str(os.getpid())), "w").close()
time.sleep(60)
"""
POLITE = "import time, signal, sys; signal.signal(15, lambda *_: sys.exit(0)); time.sleep(60)"


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def started(folder: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 20
    while len(list(folder.iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(path.name) for path in folder.iterdir()]


@pytest.fixture
def tree(tmp_path):
    """A stubborn process with two children of two children each, and the ids of all."""
    script, folder = tmp_path / "stub born).py", tmp_path / "ids"
    script.write_text(STUBBORN)
    folder.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(folder), "2"])
    pids = started(folder, 7)
    yield process, pids
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_descendants_are_found_across_sessions(tree):
    process, pids = tree
    assert sorted([process.pid, *descendants(process.pid)]) == sorted(pids)


def test_a_tree_that_ignores_polite_signals_is_gone_within_five_seconds(tree):
    process, pids = tree
    begin = time.monotonic()
    end_tree(process)
    assert [pid for pid in pids if is_alive(pid)] == []
    assert time.monotonic() - begin < 5


def test_a_polite_process_ends_by_itself_and_at_once():
    process = subprocess.Popen([sys.executable, "-c", POLITE])
    time.sleep(0.3)
    begin = time.monotonic()
    end_tree(process, patience_s=10)
    assert time.monotonic() - begin < 5
    assert process.returncode in (0, -signal.SIGTERM)


def test_an_ended_process_is_left_alone():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    end_tree(process)
    assert process.returncode == 3
