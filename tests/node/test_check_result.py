"""What the end of a job reads of its checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.failure.causes import find_cause
from launcher.node.checks.result import Checks, read_checks
from launcher.node.ending import Facts, Limits, Past, decide
from launcher.node.records import write_record
from launcher.plan.run_files import StartFiles

LIMITS = Limits(max_requeues=None, max_failures_without_progress=3, signal_seconds=120)
ENDED = Facts(exit_code=1, outcome=None, first_step=0, trained_step=0, saved_step=0)


@pytest.fixture
def start(tmp_path: Path) -> StartFiles:
    files = StartFiles(root=tmp_path)
    files.checks.mkdir()
    write_record(files.nodes, {"nodes": ["n1", "n2"]})
    return files


def test_nodes_that_passed_or_were_not_checked_are_not_bad(start):
    write_record(start.check("n1"), {"node": "n1", "ok": True})
    write_record(start.check_verdict, {"ok": True, "why": "", "is_everywhere": False})
    assert read_checks(start) == Checks()
    assert read_checks(StartFiles(root=start.root / "nothing")) == Checks()


def test_the_verdict_names_bad_nodes_and_why(start):
    write_record(start.check("n1"), {"node": "n1", "ok": True})
    write_record(start.check("n2"), {"node": "n2", "ok": False})
    write_record(start.check_verdict, {"ok": False, "why": "n2: slow", "is_everywhere": False})
    assert read_checks(start) == Checks(bad_nodes=("n2",), why="n2: slow")


def test_without_a_verdict_those_who_wrote_nothing_are_bad(start):
    write_record(start.report("n1"), {"node": "n1"})
    assert read_checks(start).bad_nodes == ("n2",)
    write_record(start.report("n2"), {"node": "n2"})
    assert read_checks(start) == Checks()


def test_where_nobody_wrote_anything_nobody_is_named(start):
    assert read_checks(start) == Checks()


def end(**changes: object) -> tuple[str, str, tuple[str, ...]]:
    ending = decide(Facts(**{**vars(ENDED), **changes}), LIMITS)
    return ending.status, ending.reason, ending.bad_nodes


def test_a_bad_node_sends_the_job_back_and_is_left_out():
    assert end(bad_nodes=("n2",), checks="n2: slow") == ("requeued", "bad_node", ("n2",))


def test_a_job_whose_nodes_are_bad_again_and_again_ends():
    past = [Past(reason="bad_node", first_step=0)] * 2
    assert end(bad_nodes=("n2",), checks="n2: slow", past=past)[:2] == ("failed", "no_progress")


def test_what_every_node_has_is_not_tried_again():
    found = end(bad_nodes=("n1", "n2"), checks="both", is_everywhere=True)
    assert found == ("failed", "bad_node", ())


def test_where_nobody_is_to_blame_the_job_tries_again_anywhere():
    assert end(checks="waited in vain") == ("requeued", "bad_node", ())


HUNG = {
    "hung": True,
    "cause": find_cause("Hung: no step within 20 s after step 3"),
    "error": "rank 2 on n2: Hung: no step within 20 s after step 3",
    "failed_node": "n2",
}


def test_a_hang_starts_the_job_again_on_any_node():
    assert end(**HUNG) == ("requeued", "hang", ())


@pytest.mark.parametrize(("node", "bad"), [("n2", ("n2",)), ("n1", ())])
def test_a_node_on_which_a_rank_hangs_again_is_left_out(node, bad):
    past = [Past(reason="hang", first_step=0, node=node)]
    assert end(**HUNG, past=past) == ("requeued", "hang", bad)
