"""Does `launch status` say the right thing of a run, whatever is left of it and of its job?"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.checkpoint.lock import hold
from launcher.plan.run_files import RunFiles
from tests.submit.cases import bundled, planned
from tests.submit.slurm_says import DOWN, Slurm, line
from tests.test_cli import launch

STATES = {
    "new", "queued", "starting", "running", "requeued", "done", "stopped", "cancelled", "failed",
    "lost", "unknown",
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Slurm:
    return Slurm(tmp_path / "bin", monkeypatch)


def make_run(root: Path, **overrides: object) -> RunFiles:
    """A run directory as it is before the job starts."""
    bundle = bundled(root, planned(**overrides))
    for folder in (bundle.files.logs, bundle.files.checkpoints):
        folder.mkdir(parents=True)
    for path, text in bundle.texts.items():
        path.write_text(text)
    return bundle.files


@pytest.fixture
def local(tmp_path) -> RunFiles:
    return make_run(tmp_path / "runs" / "a", train={"steps": 100, "micro_batch_size": 1,
                                                    "num_microbatches": 2})  # fmt: skip


@pytest.fixture
def submitted(local, slurm) -> RunFiles:
    """Job 7 of Slurm."""
    record = {"kind": "slurm", "job_id": "7", "array_task": None, "cluster": None,
              "submitted_at": time.time() - 1000, "follow_up": None}  # fmt: skip
    local.submitted.write_text(json.dumps(record))
    run = yaml.safe_load(local.run.read_text())
    run["launch"]["name"] = "slurm"
    local.run.write_text(yaml.safe_dump(run))
    return local


def begin(files: RunFiles, restart: int = 0, age_s: float = 500.0, job: str = "7") -> Path:
    """A start of the job."""
    folder = files.start(job, restart).root
    folder.mkdir(parents=True)
    began = time.time() - age_s
    record = {"nodes": ["n1", "n2"], "started_at": began, "first_step": 0}
    (folder / "nodes.json").write_text(json.dumps(record))
    return folder


def end(folder: Path, **record: object) -> None:
    document = {
        "status": "requeued",
        "reason": "preempted",
        "why": "",
        "first_step": 0,
        "last_step": 40,
        "bad_nodes": [],
        "ended_at": time.time(),
        "first_error": None,
    }
    (folder / "end.json").write_text(json.dumps({**document, **record}))  # fmt: skip


def take_steps(files: RunFiles, count: int) -> None:
    entry = {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 0.1, "step_s": 2.0,
             "tokens_per_s": 1234.0}  # fmt: skip
    lines = [json.dumps({"step": step, **entry}) for step in range(count)]
    files.metrics.write_text("\n".join([*lines, '{"step": ']))


def tell(files: RunFiles, rank: int, error: str) -> None:
    document = {"rank": rank, "node": "n2", "error": error, "time": time.time(), "is_echo": False}
    files.rank_error(rank).write_text(json.dumps(document))


def status(word: str = "a", code: int = 0) -> tuple[dict[str, Any], str]:
    """The document and the text of the same run."""
    got, out, err = launch("status", word, "--json")
    assert (got, err) == (code, ""), err
    document = json.loads(out)
    got, text, err = launch("status", word)
    assert (got, err) == (code, "")
    assert document["state"] in STATES
    assert document["state"] in text
    return document, text


# Runs on this machine


def test_a_run_that_was_only_written_is_new(local):
    assert status()[0]["state"] == "new"


def test_a_run_whose_job_holds_its_lock_is_running_with_an_eta(local):
    take_steps(local, 30)
    with hold(local.launch_lock), hold(local.job_lock):
        document, text = status()
    assert (document["state"], document["step"], document["total_steps"]) == ("running", 30, 100)
    assert document["eta_s"] == 140.0
    assert (document["loss"], document["tokens_per_s"]) == (2.5, 1234.0)
    assert "step 30/100  loss 2.5000  1,234 tokens/s  ETA 0:02:20  last step 0:00:00 ago" in text
    assert "launch cancel" in text


def test_a_step_that_takes_far_too_long_is_said(local):
    take_steps(local, 30)
    old = time.time() - 600
    os.utime(local.metrics, (old, old))
    with hold(local.job_lock):
        document, text = status()
    assert document["seconds_since_step"] == pytest.approx(600, abs=30)
    assert "is it stuck?" in text


def test_a_run_whose_workers_are_on_their_way_is_starting(local):
    with hold(local.launch_lock):
        assert status()[0]["state"] == "starting"


def test_a_finished_run_is_done(local):
    take_steps(local, 100)
    local.summary.write_text(json.dumps({"outcome": {"status": "done", "steps": 100}}))
    document, text = status()
    assert (document["state"], document["eta_s"]) == ("done", None)
    assert "next" not in text


def test_a_run_that_was_asked_to_end_is_stopped_and_can_go_on(local):
    local.summary.write_text(json.dumps({"outcome": {"status": "stopped", "steps": 3}}))
    document, text = status()
    assert document["state"] == "stopped"
    assert f"launch resume {local.root}" in text


def test_a_failed_run_names_rank_node_error_and_what_to_change(local):
    take_steps(local, 3)
    tell(local, 3, "RunFailed: the loss is nan at step 4")
    local.summary.write_text(json.dumps({"outcome": {"status": "failed", "error": "x\ny"}}))
    document, text = status(code=1)
    failure = document["failure"]
    assert (failure["rank"], failure["node"], failure["kind"]) == (3, "n2", "not_a_number")
    assert failure["place"] == "dp 0, pp 1, tp 1"
    assert failure["remedies"][0]["key"] == "optimizer.learning_rate"
    assert "rank 3 on node n2 (dp 0, pp 1, tp 1) failed: RunFailed: the loss is nan" in text
    assert "  try optimizer.learning_rate=0.0005: " in text


def test_a_run_that_was_killed_with_its_launcher_is_lost(local):
    take_steps(local, 3)
    document, text = status(code=1)
    assert document["state"] == "lost"
    assert "gone without a word" in text


@pytest.mark.parametrize("file", ["run", "plan", "metrics", "summary", "submitted", "cancelled"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0", '{"outcome": 3}', "7"])
def test_torn_files_never_end_in_a_traceback(local, file, text):
    take_steps(local, 3)
    getattr(local, file).write_text(text)
    code, out, _ = launch("status", "a", "--json")
    assert code in (0, 1)
    assert json.loads(out)["state"] in STATES


# Jobs of Slurm's, by what squeue has said


def test_a_queued_job_says_why_it_waits_and_when_it_is_expected(submitted, slurm):
    start = int(time.time()) + 7200
    slurm.queued(line(reason="Priority", start=str(start)))
    document, text = status()
    assert (document["state"], document["job_id"]) == ("queued", "7")
    assert document["expected_start"] == start
    assert "jobs of higher priority come first (Priority)" in text
    assert "(in 1:59:" in text or "(in 2:00:00)" in text


def test_an_expected_start_that_slurm_does_not_know_is_said_so(submitted, slurm):
    slurm.queued(line(reason="PartitionTimeLimit"))
    document, text = status()
    assert document["expected_start"] is None
    assert "launch.time_limit is above that of its partition" in text
    assert "expected start not known yet" in text


def test_a_job_on_its_nodes_is_starting_until_its_first_step(submitted, slurm):
    slurm.queued(line(state="RUNNING", reason="None", nodes="n[1-2]"))
    assert status()[0]["state"] == "starting"
    begin(submitted)
    assert status()[0]["state"] == "starting"
    take_steps(submitted, 10)
    document, text = status()
    assert document["state"] == "running"
    assert "nodes n[1-2], 5:00 to its time limit" in text


def test_steps_of_an_earlier_start_do_not_make_a_start_running(submitted, slurm):
    take_steps(submitted, 10)
    old = time.time() - 600
    os.utime(submitted.metrics, (old, old))
    end(begin(submitted, age_s=800))
    begin(submitted, 1, age_s=20)
    slurm.queued(line(state="RUNNING", reason="None"))
    assert status()[0]["state"] == "starting"


def test_a_job_that_went_on_says_after_what_time(submitted, slurm):
    end(begin(submitted, 0))
    folder = begin(submitted, 1, age_s=100.0)
    nodes = json.loads((folder / "nodes.json").read_text())
    began = nodes["started_at"]
    (folder / "nodes.json").write_text(json.dumps(nodes | {"last_sign_at": began - 20.0}))
    (folder / "agent_n1.json").write_text(json.dumps({"first_step_at": began + 13.5}))
    (folder / "agent_n2.json").write_text(json.dumps({"first_step_at": None}))
    slurm.queued(line(state="RUNNING", nodes="n[1-2]"))
    document, text = status()
    assert [start["recovery_s"] for start in document["starts"]] == [None, 33.5]
    assert "training again after 34 s  runs" in text


def test_a_requeued_job_says_how_often_and_why(submitted, slurm):
    end(begin(submitted, 0, 900), why="a job of higher priority took its nodes")
    end(begin(submitted, 1, 800), reason="time_limit", last_step=70)
    slurm.queued(line(reason="BeginTime"))
    document, text = status()
    assert (document["state"], document["num_requeues"]) == ("requeued", 1)
    assert [start["reason"] for start in document["starts"]] == ["preempted", "time_limit"]
    assert "2, 1 requeue" in text
    assert "requeued: a job of higher priority took its nodes" in text
    assert "n1,n2  from step 0 to 70  requeued: time limit" in text


def test_a_start_without_an_end_before_another_one_lost_its_first_node(submitted, slurm):
    begin(submitted, 0, 900)
    take_steps(submitted, 10)
    begin(submitted, 1, 100)
    slurm.queued(line(state="RUNNING", reason="None"))
    document, _ = status()
    assert [(start["status"], start["reason"]) for start in document["starts"]] == [
        ("requeued", "node_failure"), ("open", "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status_word", "reason", "state", "code"),
    [("done", "finished", "done", 0), ("failed", "worker_failed", "failed", 1),
     ("stopped", "cancelled", "cancelled", 0), ("failed", "no_progress", "failed", 1)],
)  # fmt: skip
def test_a_job_that_slurm_has_forgotten_is_known_by_its_own_end(
    submitted, status_word, reason, state, code
):
    end(begin(submitted), status=status_word, reason=reason, why="")
    assert status(code=code)[0]["state"] == state


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_job_that_was_asked_to_end_is_cancelled_however_its_script_ended(submitted, slurm, state):
    begin(submitted)
    submitted.cancelled.write_text(json.dumps({"by": "alice@login", "at": 1.0}))
    slurm.queued(line(state=state, reason="None"))
    document, text = status()
    assert document["state"] == "cancelled"
    assert "asked for by alice@login" in text
    assert "has not said its end" in text


def test_a_job_that_left_the_queue_without_a_word_is_lost(submitted):
    assert "left the queue before it started" in status(code=1)[1]
    begin(submitted)
    assert "left the queue without a word" in status(code=1)[1]


def test_a_job_that_left_the_queue_while_it_waited_to_go_on_is_lost(submitted):
    end(begin(submitted), reason="time_limit", why="its time limit")
    assert "its time limit; it then left the queue while it waited" in status(code=1)[1]


def test_accounting_tells_of_a_job_that_squeue_has_forgotten(submitted, slurm):
    begin(submitted)
    slurm.program("sacct", text="7|CANCELLED by 1000|1795264606|1795264906|alice|n[1-2]")
    document, text = status()
    assert document["state"] == "cancelled"
    assert "scancel ended it by 1000" in text
    slurm.program("sacct", text="7|OUT_OF_ME+|1795264606|1795264906|alice|n[1-2]")
    assert status(code=1)[0]["state"] == "failed"


@pytest.mark.parametrize(
    ("state", "keys"),
    [("TIMEOUT", {"launch.time_limit", "checkpoint.every_minutes"}),
     ("OUT_OF_MEMORY", {"launch.mem"}), ("NODE_FAIL", set()), ("FAILED", set()),
     ("WHATEVER", set())],
)  # fmt: skip
def test_what_slurm_ended_is_failed_and_says_what_to_change(submitted, slurm, state, keys):
    begin(submitted)
    slurm.queued(line(state=state, reason="None"))
    document, text = status(code=1)
    assert document["state"] == "failed"
    assert f"(Slurm: {state})" in text
    assert keys <= {remedy["key"] for remedy in document["remedies"]}


def test_what_slurmd_said_in_the_jobs_log_is_the_error_where_no_rank_left_one(submitted, slurm):
    begin(submitted)
    words = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of it was killed."
    (submitted.logs / "slurm-7.log").write_text(
        f"hello\n{words}\nsrun: error: n2: task 1: Killed\n"
    )
    slurm.queued(line(state="FAILED", reason="NonZeroExitCode"))
    document, text = status(code=1)
    assert (document["failure"]["kind"], document["failure"]["rank"]) == (
        "host_out_of_memory", None
    )  # fmt: skip
    assert f"the job failed: {words}" in text


def test_the_first_error_in_the_jobs_own_record_counts_where_ranks_left_none(submitted):
    error = {"rank": 2, "node": "n2", "error": "CUDA error: uncorrectable ECC error encountered"}
    end(begin(submitted), status="failed", reason="worker_failed", first_error=error)
    document, _ = status(code=1)
    assert (document["failure"]["rank"], document["failure"]["kind"]) == (2, "bad_gpu")


def test_an_error_of_an_earlier_start_is_not_blamed(submitted):
    end(begin(submitted, 0, 900))
    tell(submitted, 1, "ValueError: of the first start")
    folder = begin(submitted, 1, -5)
    end(folder, status="failed", reason="unknown")
    assert status(code=1)[0]["failure"] is None


def test_where_slurm_does_not_answer_the_files_are_read_and_it_is_said(submitted, slurm):
    slurm.program("squeue", error=DOWN)
    document, text = status()
    assert document["state"] == "unknown"
    assert "Slurm cannot be asked: squeue: slurm_load_jobs error: Unable to contact" in text
    begin(submitted)
    take_steps(submitted, 3)
    assert status()[0]["state"] == "running"
    end(begin(submitted, 1, 0), status="done", reason="finished")
    assert status()[0]["state"] == "done"


def test_without_slurms_programs_the_files_are_read(submitted, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    document, text = status()
    assert document["state"] == "unknown"
    assert "there is no squeue on this machine" in text


@pytest.mark.parametrize("said", ["7|torn", "|||||||||||", "\x00", "a|b|c|d|e|f|g|h|i|j|k"])
def test_garbage_from_slurm_never_ends_in_a_traceback(submitted, slurm, said):
    slurm.program("squeue", text=said)
    code, out, _ = launch("status", "a", "--json")
    assert code in (0, 1)
    assert json.loads(out)["state"] in STATES


def test_a_job_behind_the_first_one_counts_once_the_first_has_ended(submitted, slurm):
    record = json.loads(submitted.submitted.read_text()) | {"follow_up": "8"}
    submitted.submitted.write_text(json.dumps(record))
    end(begin(submitted), reason="time_limit")
    ended, waits = line("7", "COMPLETED", "None"), line("8", "PENDING", "Dependency")
    choose = f'case "$*" in *--jobs=7*) echo "{ended}";; *) echo "{waits}";; esac'
    slurm.program("squeue", then=choose)
    document, _ = status()
    assert (document["state"], document["job_id"]) == ("requeued", "8")


def test_a_resumed_run_does_not_take_the_starts_of_its_old_job_for_its_own(submitted, slurm):
    end(begin(submitted, job="3"), status="failed", reason="worker_failed")
    slurm.queued(line())
    document, _ = status()
    assert (document["state"], document["num_requeues"]) == ("queued", 0)
    assert len(document["starts"]) == 1


# Which run is meant


def test_a_run_is_found_by_the_id_of_its_job(submitted, slurm):
    slurm.queued(line())
    assert status("7")[0]["run_dir"] == str(submitted.root)


def test_a_run_is_found_by_the_id_of_a_past_start(submitted, slurm):
    begin(submitted, job="3")
    assert json.loads(launch("status", "3", "--json")[1])["run_dir"] == str(submitted.root)


def test_a_job_that_was_submitted_elsewhere_is_found_by_its_script(
    submitted, slurm, tmp_path, monkeypatch
):
    slurm.queued(line(script=str(submitted.job)))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert status("7")[0]["run_dir"] == str(submitted.root)


def test_an_unknown_job_is_a_finding(submitted):
    code, out, err = launch("status", "999")
    assert (code, out) == (2, "")
    assert err == (
        "RUN=999 [no-such-run]: no run under runs/ has this job, and Slurm knows no such job of a "
        "run. Legal here: a. Try runs/a.\n"
    )


def test_a_job_that_is_none_of_ours_is_a_finding(submitted, slurm):
    slurm.queued(line(job="55", script="/home/alice/other.sh"))
    assert launch("status", "55")[0] == 2


@pytest.fixture
def sweep(tmp_path, slurm) -> list[RunFiles]:
    runs = [make_run(tmp_path / "runs" / "sweep" / str(task)) for task in range(3)]
    for task, files in enumerate(runs):
        record = {"kind": "slurm", "job_id": "9", "array_task": task, "submitted_at": 1.0}
        files.submitted.write_text(json.dumps(record))
    row = line("9", task="$task")
    slurm.program("squeue", then=f'all="$*"; task=${{all##*_}}; task=${{task%% *}}; echo "{row}"')
    return runs


@pytest.mark.parametrize("word", ["9", "sweep", "runs/sweep"])
def test_the_runs_of_a_sweep_are_listed_in_their_order(sweep, word):
    code, out, _ = launch("status", word)
    assert code == 0
    assert [row.split()[:3] for row in out.splitlines()] == [
        [str(task), f"9_{task}", "queued"] for task in range(3)
    ]
    documents = json.loads(launch("status", word, "--json")[1])["runs"]
    assert [document["job_id"] for document in documents] == ["9_0", "9_1", "9_2"]


def test_one_task_of_a_sweep_is_one_run(sweep):
    assert status("9_1")[0]["run_dir"] == str(sweep[1].root)


def test_what_is_for_one_run_refuses_a_sweep(sweep):
    code, _, err = launch("logs", "9")
    assert code == 2
    assert "[one-run]: 3 runs are meant, and this is for one" in err
