"""Does the end of a job bring about what was decided, and its next start see it?"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launcher.node import end as end_module
from launcher.node.__main__ import main
from launcher.node.end import finish
from launcher.node.records import read_record
from launcher.node.start import begin
from launcher.plan.run_files import RunFiles
from tests.node.places import (
    add_checkpoint,
    add_error,
    add_start,
    add_steps,
    make_files,
    make_place,
)
from tests.submit.slurm_says import Slurm

NO_REQUEUE = "Requested operation is presently disabled"
AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class Queue(Slurm):
    """Slurm as a job of its own sees it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, monkeypatch)
        self.shows()

    def shows(
        self,
        state: str = "RUNNING",
        restarts: int = 0,
        preempted: str = "None",
        end_time: str = "Unknown",
        refused: str = "",
        excluded: str = "(null)",
    ) -> None:
        """What scontrol answers, to `show` and to `requeue`."""
        fields = (
            f"JobId=7 JobName=a b JobState={state} Reason=None Restarts={restarts} "
            f"EndTime={end_time} PreemptTime={preempted} ExcNodeList={excluded}"
        )
        no = f"echo {refused!r} >&2; exit 1" if refused else ":"
        cases = f'case "$1 $2" in\n"show job") echo "{fields}";;\n"show hostnames") echo "n1 n2";;'
        self.program("scontrol", then=f"{cases}\nrequeue*) {no};;\nesac")

    @property
    def did(self) -> list[str]:
        """What the queue was told, beside questions."""
        said = [line for line in self.calls("scontrol") if not line.startswith("show")]
        return said + [f"scancel {line}" for line in self.calls("scancel")]


@pytest.fixture
def queue(tmp_path, monkeypatch) -> Queue:
    return Queue(tmp_path / "bin", monkeypatch)


@pytest.fixture
def files(tmp_path) -> RunFiles:
    return make_files(tmp_path / "run")


def ended(files: RunFiles, exit_code: int = 1, was_asked: bool = False, restart: int = 0) -> dict:
    """end.json after the end of a start, with the exit code of the job in it."""
    code = finish(make_place(files, restart), exit_code, was_asked)
    return (read_record(files.start("7", restart).end) or {}) | {"code": code}


def write_outcome(files: RunFiles, status: str, steps: int = 100) -> None:
    files.summary.write_text(json.dumps({"outcome": {"status": status, "steps": steps}}))


def test_a_finished_run_ends_its_job_and_the_jobs_behind_it(files, queue):
    add_start(files)
    add_steps(files, 100)
    write_outcome(files, "done")
    record = json.loads(files.submitted.read_text()) | {"follow_up": ["8", "9"]}
    files.submitted.write_text(json.dumps(record))
    queue.shows(state="PENDING")
    end = ended(files, exit_code=0)
    assert (end["status"], end["code"], end["last_step"]) == ("done", 0, 100)
    assert queue.did == ["scancel 8 9"]


def test_a_killed_rank_sends_the_job_back_and_its_error_is_on_record(files, queue):
    add_start(files)
    add_error(files, "killed by signal SIGKILL")
    end = ended(files)
    assert (end["status"], end["reason"], end["code"]) == ("requeued", "worker_failed", 0)
    assert end["first_error"]["rank"] == 1
    assert queue.did == ["requeue 7"]


def test_a_configuration_error_never_goes_back(files, queue):
    add_start(files)
    add_error(files, "ConfigError: model.num_layers [wrong-type]: no")
    end = ended(files)
    assert (end["status"], end["reason"], end["code"]) == ("failed", "configuration", 1)
    assert queue.did == []


def test_nodes_found_bad_now_and_before_are_excluded_beside_those_of_the_user(files, queue):
    add_start(files, restart=0, end={"reason": "bad_node", "bad_nodes": ["n3"]})
    folder = add_start(files, restart=1)
    (folder / "check_n2.json").write_text(json.dumps({"node": "n2", "ok": False}))
    (folder / "check_n1.json").write_text(json.dumps({"node": "n1", "ok": True}))
    queue.shows(restarts=1, excluded="n9")
    queue.program(
        "scontrol",
        then='case "$1 $2" in\n"show hostnames") echo n9;;\n'
        '"show job") echo "JobState=RUNNING Restarts=1 ExcNodeList=n9";;\nesac',
    )
    end = ended(files, restart=1)
    assert (end["reason"], end["bad_nodes"], end["excluded"]) == ("bad_node", ["n2"], ["n3", "n2"])
    assert queue.did == ["requeue 7", "update JobId=7 ExcNodeList=n9,n3,n2"]


def test_a_lost_node_that_came_back_and_killed_the_next_start_is_excluded(files, queue):
    add_start(files, restart=0, end={"reason": "node_failure", "lost_nodes": ["n2"]})
    add_start(files, restart=1)
    queue.shows(restarts=1)
    end = ended(files, exit_code=137, restart=1)
    assert (end["reason"], end["bad_nodes"]) == ("node_failure", ["n2"])
    assert queue.did == ["requeue 7", "update JobId=7 ExcNodeList=n2"]


def test_where_the_site_refuses_to_requeue_the_job_behind_goes_on(files, queue):
    add_start(files)
    record = json.loads(files.submitted.read_text()) | {"follow_up": "8"}
    files.submitted.write_text(json.dumps(record))
    queue.shows(state="PENDING", refused=NO_REQUEUE)
    end = ended(files)
    assert (end["status"], end["code"]) == ("requeued", 0)
    assert queue.did == ["requeue 7"]


def test_where_nothing_waits_behind_it_the_way_on_is_said(files, queue, capsys):
    add_start(files)
    queue.shows(refused=NO_REQUEUE)
    end = ended(files)
    assert (end["status"], end["code"]) == ("stopped", 1)
    assert NO_REQUEUE in end["why"]
    assert f"launch resume {files.root}" in capsys.readouterr().err


def test_a_run_that_may_not_be_requeued_is_not(tmp_path, queue):
    files = make_files(tmp_path / "no", requeue=False)
    add_start(files)
    assert ended(files)["status"] == "stopped"
    assert queue.did == []


# What the queue does to a job.


def test_a_preempted_job_goes_back(files, queue):
    add_start(files)
    write_outcome(files, "stopped", 50)
    queue.shows(preempted="2026-01-31T12:00:00")
    end = ended(files, exit_code=0, was_asked=True)
    assert (end["status"], end["reason"]) == ("requeued", "preempted")


def test_a_job_that_the_queue_ends_and_nobody_requeues_was_cancelled(files, queue):
    add_start(files)
    queue.shows(state="COMPLETING")
    assert ended(files)["reason"] == "cancelled"
    assert queue.did == []


def test_a_job_at_its_time_limit_was_not_cancelled(files, queue):
    add_start(files, ends_at=time.time())
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    queue.shows(state="COMPLETING", end_time=stamp)
    end = ended(files, was_asked=True)
    assert (end["status"], end["reason"]) == ("requeued", "time_limit")


def test_a_job_that_the_queue_has_started_again_is_not_requeued_twice(files, queue):
    add_start(files)
    queue.shows(state="COMPLETING", restarts=1)
    queue.program("sinfo", text="n2\nn2")
    end = ended(files, was_asked=True)
    assert (end["status"], end["reason"]) == ("requeued", "node_failure")
    assert end["why"].endswith("lost n2")
    assert queue.did == []


def test_a_lost_node_ends_no_job_that_waits_behind(tmp_path, queue):
    files = make_files(tmp_path / "no", requeue=False)
    record = json.loads(files.submitted.read_text()) | {"follow_up": "8"}
    files.submitted.write_text(json.dumps(record))
    add_start(files)
    queue.program(
        "scontrol", then='[ "$3 $4" = "--oneliner 8" ] && echo JobState=PENDING || '
        "echo JobState=NODE_FAIL Restarts=0",
    )  # fmt: skip
    assert ended(files, was_asked=True)["reason"] == "node_failure"
    assert queue.did == []


def test_launch_cancel_before_the_end_counts_whatever_the_queue_says(files, queue):
    add_start(files)
    files.cancelled.write_text("{}")
    queue.shows(preempted="2026-01-31T12:00:00")
    assert ended(files)["reason"] == "cancelled"
    assert queue.did == []


def test_a_start_that_another_has_followed_says_and_does_nothing(files, queue):
    add_start(files, restart=0)
    add_start(files, restart=1)
    assert finish(make_place(files, 0), 1, False) == 0
    assert not files.start("7", 0).end.exists()
    assert queue.did == []


def test_a_queue_that_is_away_for_a_moment_is_asked_again(files, queue, monkeypatch):
    monkeypatch.setattr("launcher.node.queue._ASK_AGAIN_S", 0.01)
    add_start(files)
    away = f"[ $(grep -c . {queue.folder}/scontrol.calls) -lt 5 ]"
    queue.program("scontrol", then=f"{away} && {{ echo '{AWAY}' >&2; exit 1; }}\nexit 0")
    assert ended(files)["status"] == "requeued"
    assert queue.did[-2:] == ["requeue 7", "requeue 7"]


def test_a_queue_that_does_not_answer_leaves_the_run_for_a_person(files, queue, monkeypatch):
    monkeypatch.setattr(end_module.queue.requeue, "__defaults__", (0.0,))
    add_start(files)
    queue.program("scontrol", error=AWAY)
    end = ended(files)
    assert (end["status"], end["code"]) == ("stopped", 1)
    assert "Unable to contact" in end["why"]


# The start after it.


def test_a_start_says_what_the_one_before_left_and_puts_its_errors_aside(
    files, queue, capsys, monkeypatch
):
    add_start(files, end={"reason": "hang", "why": "nothing moved", "bad_nodes": ["n2"]})
    add_error(files, "timed out")
    add_steps(files, 70)
    add_checkpoint(files, 60, monkeypatch)
    queue.shows(restarts=1)
    assert begin(make_place(files, restart=1)) == 0
    nodes = read_record(files.start("7", 1).nodes)
    assert (nodes["first_step"], nodes["nodes"], nodes["excluded"]) == (60, ["n1", "n2"], ["n2"])
    assert not list(files.logs.glob("rank_*.error.json"))
    assert (files.start("7", 0).root / "rank_1.error.json").exists()
    said = capsys.readouterr().out
    for words in ("start 2", "continues after step 60", "nothing moved", "stays away from n2"):
        assert words in said


def test_starts_that_could_not_write_their_end_still_count(files, queue, capsys):
    for restart in range(2):
        add_start(files, restart=restart, end={"reason": "node_failure"})
    add_start(files, restart=2)  # no end: its first node was lost
    queue.shows(restarts=3)
    queue.program("sinfo", text="n1")
    assert begin(make_place(files, restart=3)) == 1
    end = read_record(files.start("7", 3).end)
    assert (end["status"], end["reason"]) == ("failed", "no_progress")
    assert read_record(files.start("7", 2).end)["reason"] == "node_failure"
    assert read_record(files.start("7", 2).end)["why"].endswith("lost n1")
    assert queue.did == []


def test_a_start_with_nothing_left_to_do_is_done_and_trains_nothing(files, queue):
    add_start(files, end={"reason": "node_failure"})
    add_steps(files, 100)
    write_outcome(files, "done")
    queue.shows(restarts=1)
    assert begin(make_place(files, restart=1)) == 0
    assert read_record(files.start("7", 1).end)["status"] == "done"
    assert ended(files, restart=1)["code"] == 0


def test_a_resume_that_was_cut_off_is_not_trained_on(files, queue, capsys, monkeypatch):
    files.pending.mkdir(parents=True)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert main(["start", str(files.root)]) == 1
    assert "launch resume" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["start"], ["sing", "x"], ["end", "a", "b", "c"]])
def test_other_words_are_refused_with_the_usage(words, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert main(words) == 2
    assert "usage" in capsys.readouterr().err


def test_outside_a_job_it_says_so(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["start", "x"]) == 1
    assert "SLURM_JOB_ID" in capsys.readouterr().err
