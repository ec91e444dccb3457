"""Is the rank that failed first found, whatever it left behind?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.failure.first import Failure, Traces, first_failure, report_of
from launcher.plan.run_files import RunFiles

# As torch.distributed.elastic.multiprocessing.errors prints it.
REPORT = """\
W0101 00:00:00.000000 77 site-packages/torch/distributed/elastic/multiprocessing/api.py] closing
launcher.runtime.worker FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_00:00:01
  host      : node7
  rank      : 1 (local_rank: 1)
  exitcode  : -15 (pid: 102)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 102
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : node7
  rank      : 3 (local_rank: 3)
  exitcode  : {code} (pid: 104)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 104
============================================================
"""


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    made = RunFiles(root=tmp_path)
    made.logs.mkdir()
    return made


def tell(files: RunFiles, rank: int, error: str, time: float, is_echo: bool = False) -> None:
    document = {"rank": rank, "node": "node7", "error": error, "time": time, "is_echo": is_echo}
    files.rank_error(rank).write_text(json.dumps(document))


def found(files: RunFiles, since: float = 0.0) -> Failure | None:
    report = report_of([files.launcher_log])
    return first_failure(Traces(files=files, report=report, since=since))


def test_the_earliest_error_wins(files):
    tell(files, 2, "ValueError: late", 20.0)
    tell(files, 1, "ValueError: early", 10.0)
    assert found(files).error == "ValueError: early"


def test_an_error_of_its_own_wins_over_earlier_echoes(files):
    tell(files, 0, "connection closed by peer", 10.0, is_echo=True)
    tell(files, 2, "ValueError: real", 20.0)
    assert found(files).rank == 2


def test_a_killed_rank_wins_over_the_echoes_that_it_caused(files):
    tell(files, 0, "connection closed by peer", 10.0, is_echo=True)
    files.launcher_log.write_text(REPORT.format(code=-9))
    failure = found(files)
    assert (failure.rank, failure.node) == (3, "node7")
    assert failure.error == "killed by signal SIGKILL (out of memory, or killed by hand)"


def test_a_rank_that_told_its_error_wins_over_a_killed_one(files):
    tell(files, 1, "ValueError: real", 10.0)
    files.launcher_log.write_text(REPORT.format(code=-9))
    assert found(files).rank == 1


def test_a_rank_that_ended_without_a_word_is_blamed_and_not_its_victims(files):
    """torchrun ends the other ranks by SIGTERM; they are no cause."""
    files.launcher_log.write_text(REPORT.format(code=3))
    failure = found(files)
    assert (failure.rank, failure.error) == (3, "ended with exit code 3")


def test_an_echo_is_better_than_nothing(files):
    tell(files, 3, "connection closed by peer", 10.0, is_echo=True)
    files.launcher_log.write_text(REPORT.format(code=1))
    assert found(files).error == "connection closed by peer"


@pytest.mark.parametrize("torn", ["", "{", '{"rank": 1', "[]", '{"rank": 1}', "null", "\x00"])
def test_a_torn_error_file_hides_no_other(files, torn):
    files.rank_error(0).write_text(torn)
    tell(files, 2, "ValueError: real", 20.0)
    assert found(files).rank == 2


def test_nothing_told_is_no_failure(files):
    assert found(files) is None
    files.launcher_log.write_bytes(b"\xff\xfe garbage\nrank : x\n")
    assert found(files) is None


def test_a_killed_rank_is_found_behind_an_echo_that_torchrun_saw_first(files):
    """torchrun looks at all ranks at once now and then, and may call an echo the root cause."""
    others = """\
Failures:
[1]:
  host      : node7
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 11)
[2]:
  host      : node7
  rank      : 2 (local_rank: 2)
  exitcode  : -15 (pid: 12)
"""
    root = (
        "Root Cause (first observed failure):\n[0]:\n  rank      : 3\n  exitcode  : 1 (pid: 13)\n"
    )
    files.launcher_log.write_text("\n" + others + root)
    tell(files, 3, "RuntimeError: gloo/transport/tcp", 5.0, is_echo=True)
    failure = found(files)
    assert (failure.rank, failure.node) == (1, "node7")
    assert "SIGKILL" in failure.error


def test_an_error_of_an_earlier_attempt_is_not_of_this_one(files):
    tell(files, 0, "ValueError: of yesterday", 10.0)
    tell(files, 2, "ValueError: of today", 20.0)
    assert found(files, since=15.0).error == "ValueError: of today"
    assert found(files, since=25.0) is None


def test_the_log_of_a_rank_that_said_nothing_tells_why_it_was_killed(files):
    """PyTorch's watchdog ends a process from C++: there is no exception to write down."""
    files.launcher_log.write_text(REPORT.format(code=-6))
    line = "[rank3]:[E101] Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE)"
    files.rank_log(3).write_text(f"step 1\n{line}\nterminate called\n")
    failure = found(files)
    assert failure.error == f"{line} (killed by signal SIGABRT)"


def test_a_log_that_tells_nothing_leaves_the_signal(files):
    files.launcher_log.write_text(REPORT.format(code=-11))
    files.rank_log(3).write_bytes(b"\xff all is well\n")
    assert found(files).error == "killed by signal SIGSEGV"
