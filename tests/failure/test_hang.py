"""Is the rank found for which the others waited when they hung?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.failure.diagnosis import diagnose
from launcher.failure.first import Traces
from launcher.failure.hang import find_behind
from launcher.plan.run_files import RunFiles

WAITS = "torch/distributed/distributed_c10d.py", "all_reduce"
P2P = "/x/launcher/runtime/pipeline/p2p.py", "wait"
READS = "/x/launcher/data/store.py", "read"
# As faulthandler writes it, other threads first.
STACKS = """\
rank: {rank}
node: n{node}
steps: {steps}
doing: training
silent: 20.1 s
thread: 0x00007f0000000001

Current thread 0x00007f0000000002 (most recent call first):
  File "/x/launcher/runtime/watchdog.py", line 90 in _dump

Thread 0x00007f0000000001 (most recent call first):
  File "{file}", line 12 in {function}
  File "/x/a.py", line 1 in f
  File "/x/b.py", line 1 in g
  File "/x/launcher/runtime/train.py", line 47 in train

Thread 0x00007f0000000003 (most recent call first):
  File "/x/idle.py", line 3 in wait
"""


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    made = RunFiles(root=tmp_path)
    made.logs.mkdir()
    made.rank_nodes.write_text('["n1", "n1", "n2", "n2"]')
    return made


def leave(files: RunFiles, rank: int, where: tuple[str, str] = WAITS, steps: int = 57) -> None:
    text = STACKS.format(
        rank=rank, node=1 + rank // 2, steps=steps, file=where[0], function=where[1]
    )
    (files.logs / f"hang_{rank}.txt").write_text(text)
    error = f"Hung: no step within 20 s after step {steps}; launch.hang_timeout_s=20"
    document = {"rank": rank, "node": f"n{1 + rank // 2}", "error": error, "stacks": "logs"}
    files.rank_error(rank).write_text(
        json.dumps(document | {"time": 10.0 + rank, "is_echo": False})
    )


def test_a_rank_without_stacks_was_stopped(files):
    for rank in (0, 1, 3):
        leave(files, rank)
    behind = find_behind(files, files.logs)
    assert (behind.rank, behind.node) == (2, "n2")
    assert behind.why.startswith("no stacks of it: it was stopped")


def test_several_ranks_without_stacks_are_all_named(files):
    leave(files, 0)
    assert find_behind(files, files.logs).why.endswith("(the same of rank 2, 3)")


def test_a_rank_that_failed_because_the_others_ended_was_not_stopped(files):
    for rank in (0, 1):
        leave(files, rank)
    leave(files, 2, READS)
    echo = {"rank": 3, "node": "n2", "error": "closed by peer", "time": 20.0, "is_echo": True}
    files.rank_error(3).write_text(json.dumps(echo))
    assert find_behind(files, files.logs).rank == 2


def test_a_stopped_rank_that_was_continued_to_be_ended_is_still_the_one(files):
    for rank in (0, 1, 2):
        leave(files, rank)
    echo = {"rank": 3, "node": "n2", "error": "closed by peer", "time": 30.0, "is_echo": True}
    files.rank_error(3).write_text(json.dumps(echo))
    behind = find_behind(files, files.logs)
    assert (behind.rank, behind.node) == (3, "n2")
    assert behind.why.startswith("no stacks of it: it was stopped")


def test_a_stopped_rank_that_was_continued_is_the_one_though_another_waits_a_step_earlier(files):
    for rank in (0, 1, 2):
        leave(files, rank, steps=85 if rank == 1 else 86)
    echo = {"rank": 3, "node": "n2", "error": "closed by peer", "time": 30.0, "is_echo": True}
    files.rank_error(3).write_text(json.dumps(echo))
    behind = find_behind(files, files.logs)
    assert (behind.rank, behind.node) == (3, "n2")
    assert behind.why.startswith("no stacks of it: it was stopped")


def test_a_rank_with_fewer_steps_is_behind_whatever_it_does(files):
    for rank in range(4):
        leave(files, rank, steps=56 if rank == 1 else 57)
    behind = find_behind(files, files.logs)
    assert (behind.rank, behind.why) == (1, "it had done 56 steps, others 57")


@pytest.mark.parametrize("others", [WAITS, P2P])
def test_a_rank_that_waits_for_nobody_is_behind(files, others):
    for rank in range(4):
        leave(files, rank, READS if rank == 3 else others)
    behind = find_behind(files, files.logs)
    assert (behind.rank, behind.node) == (3, "n2")
    assert behind.why == (
        "it did not wait for others but was in /x/launcher/data/store.py:12 in read"
    )


@pytest.mark.parametrize("where", [WAITS, READS])
def test_where_all_ranks_do_the_same_none_is_blamed(files, where):
    for rank in range(4):
        leave(files, rank, where)
    assert find_behind(files, files.logs) is None


def test_a_torn_file_and_an_empty_folder_blame_nobody(files):
    assert find_behind(files, files.logs) is None
    (files.logs / "hang_0.txt").write_text("rank: 0\n")
    assert find_behind(files, files.logs) is None


def test_the_failure_of_a_run_is_the_rank_that_was_waited_for(files):
    for rank in (0, 1, 3):
        leave(files, rank)
    found = diagnose(Traces(files=files), with_remedies=False)
    assert (found.failure.rank, found.failure.node, found.cause.kind) == (2, "n2", "hang")
    assert found.failure.error.startswith("Hung: no step within 20 s after step 57; ")
    assert f"  stacks of all ranks: {files.logs}/hang_*.txt" in str(found)
    assert found.to_json()["stacks"] == str(files.logs)


def test_where_none_is_blamed_the_stacks_are_pointed_at(files):
    for rank in range(4):
        leave(files, rank)
    found = diagnose(Traces(files=files), with_remedies=False)
    assert found.failure.error.endswith("the stacks say where")
