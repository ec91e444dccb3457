"""Is the rank that failed first found, whatever it left behind?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.plan.run_files import RunFiles
from launcher.submit.postmortem import explain_failure, first_failure
from tests.submit.cases import planned

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


def test_the_earliest_error_wins(files):
    tell(files, 2, "ValueError: late", 20.0)
    tell(files, 1, "ValueError: early", 10.0)
    assert first_failure(files).error == "ValueError: early"


def test_an_error_of_its_own_wins_over_earlier_echoes(files):
    tell(files, 0, "connection closed by peer", 10.0, is_echo=True)
    tell(files, 2, "ValueError: real", 20.0)
    assert first_failure(files).rank == 2


def test_a_killed_rank_wins_over_the_echoes_that_it_caused(files):
    tell(files, 0, "connection closed by peer", 10.0, is_echo=True)
    files.launcher_log.write_text(REPORT.format(code=-9))
    failure = first_failure(files)
    assert (failure.rank, failure.node) == (3, "node7")
    assert failure.error == "killed by signal SIGKILL (out of memory, or killed by hand)"


def test_a_rank_that_told_its_error_wins_over_a_killed_one(files):
    tell(files, 1, "ValueError: real", 10.0)
    files.launcher_log.write_text(REPORT.format(code=-9))
    assert first_failure(files).rank == 1


def test_a_rank_that_ended_without_a_word_is_blamed_and_not_its_victims(files):
    """torchrun ends the other ranks by SIGTERM; they are no cause."""
    files.launcher_log.write_text(REPORT.format(code=3))
    failure = first_failure(files)
    assert (failure.rank, failure.error) == (3, "ended with exit code 3")


def test_an_echo_is_better_than_nothing(files):
    tell(files, 3, "connection closed by peer", 10.0, is_echo=True)
    files.launcher_log.write_text(REPORT.format(code=1))
    assert first_failure(files).error == "connection closed by peer"


@pytest.mark.parametrize("torn", ["", "{", '{"rank": 1', "[]", '{"rank": 1}', "null", "\x00"])
def test_a_torn_error_file_hides_no_other(files, torn):
    files.rank_error(0).write_text(torn)
    tell(files, 2, "ValueError: real", 20.0)
    assert first_failure(files).rank == 2


def test_nothing_told_is_no_failure(files):
    assert first_failure(files) is None
    files.launcher_log.write_bytes(b"\xff\xfe garbage\nrank : x\n")
    assert first_failure(files) is None


def test_the_explanation_names_rank_node_coordinates_error_and_log(files):
    tell(files, 3, "ValueError: real", 1.0)
    assert explain_failure(files, planned(), 1) == (
        "rank 3 on node node7 (dp 0, pp 1, tp 1) failed: ValueError: real\n"
        f"  log: {files.logs / 'rank_3.log'}"
    )


def test_without_a_word_from_anybody_the_end_of_torchruns_log_is_shown(files):
    files.launcher_log.write_text("\n".join(f"line {number}" for number in range(20)))
    text = explain_failure(files, planned(), 7)
    assert text.startswith("the run failed with exit code 7\n  line 12\n")
    assert text.endswith(f"  line 19\n  log: {files.launcher_log}")


def test_without_any_log_the_exit_code_is_shown(files):
    assert explain_failure(files, planned(), 7).startswith("the run failed with exit code 7")
