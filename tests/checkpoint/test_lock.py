"""Is a run directory held by one process, and never by a dead one?"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.checkpoint import lock
from launcher.checkpoint.lock import Held, hold, holder_of, wait_until_free

HOLDS = """
import sys, time
from pathlib import Path
from launcher.checkpoint.lock import take
take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "lock")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_it(tmp_path, other):
    said = f"process {other.pid} on {socket.gethostname()} since "
    with pytest.raises(Held, match=said), hold(tmp_path / "lock"):
        raise AssertionError
    holder = holder_of(tmp_path / "lock")
    assert holder is not None
    assert holder.pid == other.pid


def test_the_lock_of_a_killed_process_is_free(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert holder_of(tmp_path / "lock") is None
    with hold(tmp_path / "lock"):
        assert holder_of(tmp_path / "lock") is not None


def test_waiting_ends_when_the_holder_does(tmp_path, other):
    threading.Timer(0.2, other.kill).start()
    wait_until_free(tmp_path / "lock", 30)
    with hold(tmp_path / "lock", patience_s=30):
        pass
    assert holder_of(tmp_path / "lock") is None


def test_a_lock_that_was_never_taken_is_free(tmp_path):
    assert holder_of(tmp_path / "lock") is None
    wait_until_free(tmp_path / "lock", 0)


def test_it_is_given_back_after_an_error(tmp_path):
    def fails() -> None:
        with hold(tmp_path / "lock"):
            raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):  # noqa: PT011
            fails()


@pytest.mark.parametrize(
    ("pid", "host", "is_free"),
    [(2**22 + 5, None, True), (os.getpid(), None, False), (1, "elsewhere", False)],
    ids=["no longer", "ours", "elsewhere"],
)
def test_without_kernel_locks_the_process_is_looked_for(tmp_path, monkeypatch, pid, host, is_free):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    document = {"pid": pid, "host": host or socket.gethostname(), "since": "yesterday"}
    (tmp_path / "lock").write_text(json.dumps(document))
    assert (holder_of(tmp_path / "lock") is None) == is_free


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": null}'])
def test_a_torn_lock_file_is_no_obstacle(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with hold(tmp_path / "lock"):
        pass
