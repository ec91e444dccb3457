"""Do `launch cancel` and `launch logs` end the right job and show what matters?"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from launcher.checkpoint.lock import hold
from launcher.plan.run_files import RunFiles
from launcher.submit.logs import follow_logs
from tests.submit.slurm_says import DOWN, Slurm, line
from tests.submit.test_status import begin, elsewhere, local, slurm, submitted, sweep, tell
from tests.test_cli import launch

__all__ = ["elsewhere", "local", "slurm", "submitted", "sweep"]

LAUNCHER = """
import signal, sys, time
from pathlib import Path

from launcher.checkpoint.lock import hold
heard = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: heard.append(number))
with hold(Path(sys.argv[1])):
    print("ready", flush=True)
    while not heard or sys.argv[2] == "deaf" and heard[-1] == signal.SIGTERM:
        time.sleep(0.02)
    Path(sys.argv[1]).with_name("heard").write_text(signal.Signals(heard[-1]).name)
"""


def start_launcher(files: RunFiles, kind: str = "obeys") -> subprocess.Popen[str]:
    """A process that holds a run as `launch` does, until it is asked to end."""
    words = [sys.executable, "-c", textwrap.dedent(LAUNCHER), str(files.launch_lock), kind]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


# Cancel, here


def test_a_run_here_is_asked_to_save_and_end_and_it_is_on_record(local):
    process = start_launcher(local)
    code, out, err = launch("cancel", "a")
    assert (code, err) == (0, "")
    assert out == "cancelled; nothing was saved\n"
    assert process.wait(timeout=10) == 0
    assert (local.root / "heard").read_text() == "SIGTERM"
    assert "@" in json.loads(local.cancelled.read_text())["by"]
    assert json.loads(launch("status", "a", "--json")[1])["state"] == "cancelled"


def test_a_run_that_does_not_end_is_named_with_the_way_to_end_it_at_once(local):
    process = start_launcher(local, "deaf")
    code, _, err = launch("cancel", "a", "--timeout", "0.3")
    assert code == 1
    assert f"Try launch cancel {local.root} --now" in err
    assert launch("cancel", "a", "--now", "--json")[0] == 0
    assert process.wait(timeout=10) == 0
    assert (local.root / "heard").read_text() == "SIGINT"


def test_where_nothing_runs_there_is_nothing_to_cancel(local):
    code, _, err = launch("cancel", "a")
    assert code == 4
    assert "[not-running]: no job runs in it" in err
    assert not local.cancelled.exists()


def test_a_run_of_another_host_is_not_signalled_here(local, monkeypatch):
    process = start_launcher(local)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    code, _, err = launch("cancel", "a")
    assert code == 4
    assert "[other-host]" in err
    process.kill()
    process.wait()


def test_a_run_of_another_user_is_refused(local, monkeypatch):
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    with hold(local.launch_lock):
        monkeypatch.setattr("launcher.submit.cancel.os.kill", refuse)
        code, _, err = launch("cancel", "a")
    assert code == 4
    assert "belongs to another user" in err
    assert not local.cancelled.exists()


# Cancel, in the queue


def gone_after(slurm: Slurm, shown: str) -> None:
    """squeue shows the job until scancel was called."""
    calls = slurm.folder / "scancel.calls"
    slurm.program(
        "squeue", then=f"[ -e {calls} ] && echo '{slurm.UNKNOWN}' >&2 && exit 1; echo '{shown}'"
    )


def test_a_waiting_job_leaves_the_queue(submitted, slurm):
    gone_after(slurm, line())
    code, out, _ = launch("cancel", "7")
    assert code == 0
    assert out == "cancelled job 7; nothing was saved\n"
    assert slurm.calls("scancel") == ["7"]
    assert submitted.cancelled.exists()


def test_a_running_job_is_asked_to_save_first(submitted, slurm):
    begin(submitted)
    gone_after(slurm, line(state="RUNNING"))
    assert launch("cancel", "7")[0] == 0
    assert slurm.calls("scancel") == ["--batch --signal=USR1 7"]


@pytest.mark.parametrize("started", [True, False])
def test_a_job_that_has_nothing_to_save_or_must_end_now_is_ended_at_once(submitted, slurm, started):
    if started:
        begin(submitted)
    gone_after(slurm, line(state="RUNNING"))
    assert launch("cancel", "7", *(["--now"] if started else []))[0] == 0
    assert slurm.calls("scancel") == ["7"]


def test_a_job_that_hangs_is_named_with_the_way_to_end_it(submitted, slurm):
    begin(submitted)
    slurm.queued(line(state="RUNNING"))
    code, _, err = launch("cancel", "7", "--timeout", "0.2")
    assert code == 1
    assert "--now" in err


def test_a_job_that_waits_behind_is_cancelled_before_the_one_that_runs(submitted, slurm):
    record = json.loads(submitted.submitted.read_text()) | {"follow_up": "8"}
    submitted.submitted.write_text(json.dumps(record))
    calls = slurm.folder / "scancel.calls"
    slurm.program("squeue", then=(
        f"case \"$*\" in *--jobs=7*) id=7; row='{line('7', 'RUNNING')}';; "
        f"*) id=8; row='{line('8', 'PENDING')}';; esac; "
        f"grep -q \"$id$\" {calls} 2>/dev/null || echo \"$row\""
    ))  # fmt: skip
    assert launch("cancel", "a")[0] == 0
    assert slurm.calls("scancel") == ["8", "7"]


def test_a_job_of_another_user_is_refused_with_its_owner(submitted, slurm):
    slurm.queued(line())
    slurm.program("scancel", error="scancel: error: Kill job error on job id 7: Access/permission "
                                   "denied")  # fmt: skip
    code, _, err = launch("cancel", "a")
    assert code == 4
    assert "the job belongs to alice" in err
    assert not submitted.cancelled.exists()


@pytest.mark.parametrize("state", [None, "COMPLETED", "CANCELLED"])
def test_a_job_that_is_over_cannot_be_cancelled(submitted, slurm, state):
    if state:
        slurm.queued(line(state=state))
    code, _, err = launch("cancel", "a")
    assert code == 4
    assert "job 7 is not in the queue and does not run" in err
    assert slurm.calls("scancel") == []


def test_where_slurm_does_not_answer_nothing_is_cancelled(submitted, slurm):
    slurm.program("squeue", error=DOWN)
    code, _, err = launch("cancel", "a")
    assert code == 4
    assert "[slurm-does-not-answer]" in err
    assert not submitted.cancelled.exists()


def test_all_tasks_of_a_sweep_are_cancelled_by_the_id_of_their_array(sweep, slurm):
    calls = slurm.folder / "scancel.calls"
    slurm.program("squeue", then=(
        'all="$*"; id=${all##*--jobs=}; id=${id%% *}; '
        f'grep -q "^$id$" {calls} 2>/dev/null && exit 0; '
        'echo "9|${id#9_}|9|PENDING|Resources|N/A|NONE|5:00|alice||/x/job.sbatch"'
    ))  # fmt: skip
    code, out, _ = launch("cancel", "9")
    assert code == 0
    assert slurm.calls("scancel") == ["9_0", "9_1", "9_2"]
    assert len(out.splitlines()) == 3


# Logs


def write_logs(files: RunFiles) -> None:
    files.launcher_log.write_text("".join(f"agent {number}\n" for number in range(100)))
    for rank in range(4):
        files.rank_log(rank).write_text(f"I am rank {rank}\n")


def test_the_job_and_rank_0_are_shown_where_nothing_failed(local):
    write_logs(local)
    code, out, err = launch("logs", "a")
    assert (code, err) == (0, "")
    assert out.startswith(f"==> {local.launcher_log} <==\nagent 80\n")
    assert out.endswith(f"agent 99\n\n==> {local.rank_log(0)} <==\nI am rank 0\n")


def test_the_rank_that_failed_first_is_shown(local):
    write_logs(local)
    tell(local, 2, "ValueError: real")
    assert "I am rank 2" in launch("logs", "a")[1]
    assert "I am rank 0" not in launch("logs", "a")[1]


def test_one_rank_alone_and_all_of_it(local):
    write_logs(local)
    assert launch("logs", "a", "--rank", "3")[1] == "I am rank 3\n"
    assert len(launch("logs", "a", "--lines", "0")[1].splitlines()) == 104
    assert len(launch("logs", "a", "--lines", "1")[1].splitlines()) == 5


def test_logs_as_json_are_one_document(local):
    write_logs(local)
    document = json.loads(launch("logs", "a", "--json", "--lines", "1")[1])
    assert document["logs"] == [
        {"path": str(local.launcher_log), "lines": ["agent 99"]},
        {"path": str(local.rank_log(0)), "lines": ["I am rank 0"]},
    ]


def test_a_rank_that_does_not_exist_is_a_finding(local):
    write_logs(local)
    code, _, err = launch("logs", "a", "--rank", "9")
    assert code == 2
    assert "--rank=9 [no-such-rank]: this rank has written no log. Legal here: 0, 1, 2, 3." in err
    assert launch("logs", "a", "--lines", "-1")[0] == 2


def test_a_run_without_logs_says_so(local):
    code, out, err = launch("logs", "a")
    assert (code, out) == (0, "")
    assert err == f"nothing is in {local.logs} yet\n"


def test_the_logs_of_a_slurm_job_are_those_of_its_last_start(submitted):
    write_logs(submitted)
    folder = begin(submitted)
    (folder / "torchrun_n1.log").write_text("agent of n1\n")
    (folder / "hang_3.txt").write_text("stacks of 3\n")
    (submitted.logs / "slurm-7.log").write_text("batch\n")
    out = launch("logs", "a")[1]
    shown = [word for word in ("batch", "agent of n1", "I am rank 0", "stacks of 3") if word in out]
    assert len(shown) == 4


def test_what_is_written_while_somebody_follows_is_shown_until_the_job_ends(tmp_path, capsys):
    log, later = tmp_path / "a.log", tmp_path / "b.log"
    log.write_text("before\n")
    over = threading.Event()

    def job() -> None:
        time.sleep(0.1)
        with log.open("a") as stream:
            stream.write("during\n")
        later.write_text("anew\n")
        over.set()

    thread = threading.Thread(target=job)
    thread.start()
    follow_logs(
        lambda: [path for path in (log, later) if path.exists()], over.is_set, ask_every_s=0.2
    )
    thread.join()
    out = capsys.readouterr().out
    assert out == f"==> {log} <==\nduring\n==> {later} <==\nanew\n"


@pytest.mark.parametrize("word", ["", ".", "/", "\n", "x" * 300, "-", "../a", "=", "~", "7_", "٣"])
@pytest.mark.parametrize("verb", ["status", "logs", "cancel"])
def test_no_name_of_a_run_ends_in_a_traceback(verb, word, slurm):
    assert launch(verb, "--", word)[0] == 2
