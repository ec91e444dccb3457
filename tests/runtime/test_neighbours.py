"""Does a rank end whose neighbour has died, and none while others start or leave?"""

import json
import subprocess
import sys

import pytest

from launcher.plan.run_files import RunFiles
from launcher.runtime.neighbours import Neighbours
from launcher.runtime.process import Place
from launcher.runtime.pulse import Pulse


class Node:
    """A node of four ranks, as one of them sees it."""

    def __init__(self, tmp_path) -> None:
        self.now, self.running, self.pulse = 0.0, 4, Pulse()
        place = Place(rank=0, local_rank=0, world_size=8, node="n0", local_world_size=4)
        files = RunFiles(root=tmp_path)
        self.rank = Neighbours(files, place, self.pulse, lambda: self.running, lambda: self.now)

    def after(self, seconds: float, running: int | None) -> bool:
        self.now, self.running = self.now + seconds, running
        return self.rank.have_gone()


@pytest.fixture
def node(tmp_path) -> Node:
    return Node(tmp_path)


def test_one_that_is_missing_for_long_has_gone(node):
    assert not node.after(1, running=4)
    assert not node.after(100, running=3)
    assert not node.after(4, running=3)
    assert node.after(2, running=3)


def test_ranks_that_are_still_being_started_have_not_gone(node):
    assert not node.after(1, running=2)
    assert not node.after(100, running=3)
    assert not node.after(100, running=4)


def test_whoever_leaves_when_all_are_done_has_not_gone(node):
    assert not node.after(1, running=4)
    node.pulse.begin("leaving")
    assert not node.after(1, running=3)
    assert not node.after(100, running=1)


def test_where_the_system_does_not_say_nobody_has_gone(node):
    assert not node.after(1, running=4)
    assert not node.after(1, running=None)
    assert not node.after(100, running=None)


RANK = """
import sys, time
from pathlib import Path
from launcher.plan.run_files import RunFiles
from launcher.runtime import neighbours
from launcher.runtime.process import Place
from launcher.runtime.pulse import Pulse

neighbours._LOOK_S, neighbours._GRACE_S = 0.02, 0.1
place = Place(rank=0, local_rank=0, world_size=2, node="n0", local_world_size=2)
neighbours.Neighbours(RunFiles(root=Path(sys.argv[1])), place, Pulse()).start()
print("looking", flush=True)
time.sleep(600)
"""

PARENT = """
import subprocess, sys, time

other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
hanging = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
hanging.stdout.readline()
time.sleep(1)
print("beside its neighbour", hanging.poll())
other.kill()
other.wait()
print("alone", hanging.wait(timeout=60))
"""


def test_a_rank_ends_by_itself_however_it_hangs(tmp_path):
    (tmp_path / "logs").mkdir()
    words = [sys.executable, "-c", PARENT, RANK, str(tmp_path)]
    parent = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert parent.stdout == "beside its neighbour None\nalone 1\n"
    reason = json.loads((tmp_path / "logs" / "rank_0.error.json").read_text())
    assert reason["is_echo"]
