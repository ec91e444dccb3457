"""Do workers that outlive a hang end, and no others?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from launcher.node.processes import is_running
from launcher.node.stuck import StuckWorkers
from tests.cluster.slurm import wait_until

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def worker():
    process = subprocess.Popen([sys.executable, "-c", SLEEP, "the.worker"])
    yield process
    process.kill()
    process.wait()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stopped_worker_is_killed_once_its_time_to_dump_is_over(tmp_path, worker):
    clock = Clock()
    stuck = StuckWorkers(tmp_path, "the.worker", 30.0, clock)
    os.kill(worker.pid, signal.SIGSTOP)
    assert not stuck.look(os.getpid())
    (tmp_path / "hang_1.txt").write_text("stacks")
    assert stuck.look(os.getpid())
    assert not stuck.look(os.getpid()), "it is not new any more"
    assert is_running(worker.pid)
    clock.now = 60.0
    stuck.look(os.getpid())
    wait_until(lambda: not is_running(worker.pid), 20, "the worker ends")


def test_stacks_from_before_and_other_programs_are_let_alone(tmp_path, worker):
    clock = Clock()
    (tmp_path / "hang_1.txt").write_text("of an earlier round")
    stuck = StuckWorkers(tmp_path, "the.worker", 30.0, clock)
    assert not stuck.look(os.getpid())
    other = StuckWorkers(tmp_path, "another.worker", 30.0, clock)
    (tmp_path / "hang_2.txt").write_text("new")
    other.look(os.getpid())
    clock.now = 60.0
    stuck.look(os.getpid())
    other.look(os.getpid())
    assert is_running(worker.pid)


def test_workers_that_start_after_a_hang_are_let_alone(tmp_path):
    clock = Clock()
    stuck = StuckWorkers(tmp_path, "the.worker", 30.0, clock)
    (tmp_path / "hang_1.txt").write_text("stacks")
    stuck.look(os.getpid())
    later = subprocess.Popen([sys.executable, "-c", SLEEP, "the.worker"])
    try:
        clock.now = 60.0
        stuck.look(os.getpid())
        assert is_running(later.pid)
    finally:
        later.kill()
        later.wait()
