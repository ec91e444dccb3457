"""Is everything that would fail on plain hosts found before they are started, and said at once?"""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from launcher.errors import RunFailed, SubmissionRefused
from launcher.node.records import list_starts
from launcher.plan.records import Plan
from launcher.plan.run_files import RunFiles
from launcher.submit.cancel import cancel
from launcher.submit.crew import HostsCrew
from launcher.submit.hosts import (
    close_plain_job,
    how_to_start,
    record_plain_job,
    refuse_unready_hosts,
)
from launcher.submit.logs import choose_logs
from launcher.submit.status import read_status
from launcher.submit.write import write_bundle
from tests.factory import TINY, h100
from tests.submit.cases import bundled, planned

# Hosts by name: good does what it is told, blind sees no file, bare has no interpreter.
SSH = """\
#!/bin/bash
echo "$@" >> {folder}/calls
while [[ $1 == -* ]]; do [ "$1" != -o ] || shift; shift; done
case "$1" in
good*) shift; exec sh -c "$*";;
blind) exit 91;;
bare) exit 92;;
gone) sleep 0.5; exit 255;;
*) echo "ssh: Could not resolve hostname $1: Name or service not known" >&2; exit 255;;
esac
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch) -> Path:
    """A folder of programs on PATH with the stand-in; calls are noted in it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "ssh").write_text(SSH.format(folder=shlex.quote(str(folder))))
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def on_hosts(*hosts: str, name: str = "torchrun", **launch: object) -> Plan:
    launch |= {"name": name, "hosts": hosts}
    return planned(
        model=TINY | {"num_kv_heads": 4}, hardware=h100(num_nodes=2),
        parallelism={"tp": 4, "pp": 2, "dp": 2}, launch=launch,
    )  # fmt: skip


def refused(plan: Plan, folder: Path, python: str = "python") -> list[str]:
    bundle = bundled(folder, plan)
    try:
        refuse_unready_hosts(plan, folder, bundle.texts[bundle.script], python)
    except SubmissionRefused as error:
        return str(error).splitlines()
    return []


def test_every_host_that_is_not_ready_is_named_with_its_reason(ssh, tmp_path):
    found = refused(on_hosts("blind", "unknown"), tmp_path / "run")
    assert found == [
        f"launch.hosts=blind [run-dir-shared]: it does not see what this machine writes in "
        f"{tmp_path}. Try --run-dir on a file system that all hosts share.",
        "launch.hosts=unknown [host-reachable]: ssh unknown: ssh: Could not resolve hostname "
        "unknown: Name or service not known. Try launch.start=manual.",
    ]
    (one,) = refused(on_hosts("bare", "good"), tmp_path / "run", "/bin/sh")
    assert one.startswith("launch.hosts=bare [python-on-hosts]: it has no /bin/sh")
    assert len(refused(on_hosts("good", "good2"), tmp_path / "run", "/not/there")) == 2
    assert refused(on_hosts("good", "good2"), tmp_path / "run", "/bin/sh") == []
    assert not list(tmp_path.glob(".launch-*")), "what was made to be seen is gone"


@pytest.mark.parametrize("name", ["a b", "$(touch PWNED)", "a'; touch PWNED; '", "\\"])
def test_a_hostile_folder_is_one_word_for_the_hosts(ssh, tmp_path, name):
    (tmp_path / name).mkdir()
    assert refused(on_hosts("good", "good2"), tmp_path / name / "run", f"/{name}/sh") != []
    assert refused(on_hosts("good", "good2"), tmp_path / name / "run") == []
    assert not list(tmp_path.rglob("PWNED"))


def test_all_findings_come_at_once(ssh, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    plan = on_hosts("blind", "good", secrets=("WANDB_API_KEY",), venv="/not/there", setup=("if",))
    rules = [line.partition("[")[2].partition("]")[0] for line in refused(plan, tmp_path / "r")]
    assert rules == ["path-visible", "secret-set", "setup-readable", "run-dir-shared"]


@pytest.mark.parametrize(("name", "program"), [("torchrun", "ssh"), ("mpirun", "mpirun")])
def test_without_its_starter_it_is_refused(monkeypatch, tmp_path, name, program):
    monkeypatch.setattr("shutil.which", lambda word: None)
    (one,) = refused(on_hosts("a", "b", name=name), tmp_path / "run")
    assert f"[starter-not-here]: there is no {program} on this machine" in one


def test_nobody_is_asked_where_people_start_the_hosts(ssh, tmp_path):
    assert refused(on_hosts("blind", "unknown", start="manual"), tmp_path / "run") == []
    assert not (ssh / "calls").exists()
    lines = how_to_start(on_hosts("a", "host-b", start="manual").run.launch, Path("/runs/x y"))
    assert lines.splitlines() == [
        "on a       bash '/runs/x y/command.sh' 0",
        "on host-b  bash '/runs/x y/command.sh' 1",
    ]


# The crew


def crew_of(root: Path, script: str, *hosts: str) -> HostsCrew:
    root.mkdir(exist_ok=True)
    (root / "command.sh").write_text(script)
    return HostsCrew(root, hosts, {"TOKEN": "s3cret"})


def ended(crew: HostsCrew, within_s: float = 30) -> int:
    deadline = time.monotonic() + within_s
    while (code := crew.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return code


def test_every_host_gets_its_number_and_secrets_through_the_pipe_only(ssh, tmp_path):
    crew = crew_of(tmp_path / "run", 'read -r line; echo "$1 $2 $line"', "good1", "good2")
    with (tmp_path / "log").open("wb") as log:
        crew.start(log)
        assert ended(crew) == 0
    said = sorted((tmp_path / "log").read_text().splitlines())
    assert said == [f'{number} --held {{"TOKEN": "s3cret"}}' for number in (0, 1)]
    assert "s3cret" not in (ssh / "calls").read_text()
    assert crew.complaint() == ""


def test_a_host_that_is_lost_ends_the_others_at_once(ssh, tmp_path):
    # The other one would wait for ever: it ends when nobody holds its line any more.
    crew = crew_of(tmp_path / "run", "cat > /dev/null; exit 130", "good", "gone")
    with (tmp_path / "log").open("wb") as log:
        crew.start(log)
        assert ended(crew) == 255
    assert "host gone is lost" in crew.complaint()


def test_a_host_without_the_run_directory_is_named(ssh, tmp_path):
    crew = crew_of(tmp_path / "run", "exit 127", "good", "good2")
    with (tmp_path / "log").open("wb") as log:
        crew.start(log)
        assert ended(crew) == 127
    assert crew.complaint().startswith("host good could not start its agent: does it see ")


def test_a_wish_to_save_and_the_end_reach_every_host(ssh, tmp_path):
    script = 'while read -r line; do echo "$1 $line"; [ "$line" != end ] || exit 0; done'
    crew = crew_of(tmp_path / "run", script, "good", "good2")
    with (tmp_path / "log").open("wb") as log:
        crew.start(log)
        crew.ask()
        crew.end()
    assert crew.poll() == 0
    said = (tmp_path / "log").read_text().splitlines()
    assert sorted(said) == sorted(
        f"{number} {word}" for number in (0, 1) for word in ('{"TOKEN": "s3cret"}', "save", "end")
    )


def test_hosts_that_do_not_listen_are_killed(ssh, tmp_path, monkeypatch):
    monkeypatch.setattr("launcher.submit.crew._GONE_S", 0.2)
    crew = crew_of(tmp_path / "run", "trap '' TERM INT; sleep 60 & wait; wait", "good")
    with (tmp_path / "log").open("wb") as log:
        crew.start(log)
        crew.end()
    assert crew.poll() in (-signal.SIGKILL, -signal.SIGTERM)


# Its records


def test_the_end_of_a_job_whose_first_host_is_gone_is_written_down(tmp_path):
    files = RunFiles(root=tmp_path)
    job_id = record_plain_job(files, "torchrun")
    start = files.start(job_id, 0)
    start.root.mkdir(parents=True)
    start.nodes.write_text(json.dumps({"nodes": ["a", "b"], "started_at": time.time()}))
    close_plain_job(files, job_id, is_meant=False, why="host a is lost")
    assert json.loads(start.end.read_text())["why"] == "host a is lost"
    close_plain_job(files, job_id, is_meant=True, why="later")
    assert json.loads(start.end.read_text())["why"] == "host a is lost"


@pytest.fixture
def begun(tmp_path) -> RunFiles:
    """A run on hosts whose first one has said that it begins."""
    bundle = bundled(tmp_path / "run", on_hosts("a", "b"))
    write_bundle(bundle)
    files = bundle.files
    start = files.start(record_plain_job(files, "torchrun"), 0)
    start.root.mkdir(parents=True)
    start.nodes.write_text(json.dumps({"nodes": ["a", "b"], "started_at": time.time()}))
    return files


@pytest.mark.parametrize("at_once", [False, True])
def test_a_wish_to_cancel_is_left_for_the_hosts_and_waited_for(begun, at_once):
    with pytest.raises(RunFailed, match=r"has not ended it within 0\.3 s"):
        cancel(begun, 0.3, at_once)
    assert json.loads(begun.cancelled.read_text())["now"] is at_once
    (start,) = list_starts(begun)
    start.files.end.write_text('{"status": "stopped", "reason": "cancelled"}')
    with pytest.raises(SubmissionRefused, match="not-running"):
        cancel(begun, 0.3, at_once)


def test_logs_of_hosts_are_what_the_starter_and_each_torchrun_said(begun):
    (start,) = list_starts(begun)
    begun.launcher_log.write_text("ssh: no route\n")
    start.files.torchrun_log("a").write_text("of a\n")
    chosen = choose_logs(begun, read_status(begun), None)
    assert chosen == [begun.launcher_log, start.files.torchrun_log("a")]
