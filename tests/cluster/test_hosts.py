"""Real training on plain hosts, without a queue: started by ssh, by hand and by Open MPI."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.plan.run_files import RunFiles
from tests.cluster.hosts import TOY, Hosts
from tests.cluster.runs import Job
from tests.cluster.slurm import wait_until

HOSTS = ("launch.hosts=[n1,n2]", "hardware=pair")
LONG = ("train.steps=4000", "checkpoint.every_steps=10", "checkpoint.keep=2")


@pytest.fixture
def hosts(cluster, tmp_path) -> Iterator[Hosts]:
    """Reached by a real ssh, where there is a server to run."""
    found = Hosts(cluster, tmp_path / "here", ("n1", "n2"))
    try:
        if shutil.which("sshd") and shutil.which("ssh"):
            found.use_sshd()
        yield found
    finally:
        found.end()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Job:
    """The same four workers on this machine."""
    root = tmp_path_factory.mktemp("plain") / "run"
    one = ("hardware=local", "hardware.device=cpu", "launch=local", "train.steps=20")
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "run", "--run-dir", str(root), *TOY, *one,
         "checkpoint.every_steps=20"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return job_in(root)


def job_in(root: Path) -> Job:
    return Job(None, "", RunFiles(root=root))  # type: ignore[arg-type]


def state(hosts: Hosts, root: Path) -> str:
    return json.loads(hosts.launch("status", str(root), "--json").stdout)["state"]


def nothing_runs(hosts: Hosts, root: Path) -> bool:
    """No process of the run is left on any host."""
    return not any(
        str(root).encode() in _read(f"/proc/{pid}/cmdline")
        for name in hosts.names
        for pid in hosts.cluster.processes(name)
    )


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_two_hosts_train_to_the_same_weights_as_one(hosts, plain, launcher, tmp_path):
    root = tmp_path / "a 'b' $(id)"
    words = ("--run-dir", str(root), *TOY, *HOSTS, f"launch={launcher}", "train.steps=20")
    shown = hosts.launch("run", "--dry-run", *words, "checkpoint.every_steps=20")
    done = hosts.launch("run", *words, "checkpoint.every_steps=20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "command.sh").read_text() == shown.stdout
    job = job_in(root)
    assert job.weights == plain.weights
    assert job.losses == plain.losses
    assert job.ends == ["done: finished"]
    assert job.starts[0].nodes["nodes"] == ["n1", "n2"]
    assert {path.name for path in job.starts[0].files.root.glob("agent_*")} == {
        "agent_n1.json", "agent_n2.json",
    }  # fmt: skip
    assert state(hosts, root) == "done"


def test_a_host_that_dies_ends_the_run_and_others_go_on_by_hand(hosts, tmp_path):
    # 1. By ssh, until a host dies.
    root = tmp_path / "run"
    words = ("--run-dir", str(root), *TOY, *HOSTS, "launch=torchrun", "launch.max_restarts=0")
    command = hosts.start("run", *words, *LONG)
    job = job_in(root)
    wait_until(lambda: job.num_steps > 20, 180, "training")
    assert state(hosts, root) == "running"
    hosts.cluster.kill_node("n2")
    said = command.communicate(timeout=180)[0]
    assert command.returncode == 1
    assert "host n2 is lost" in said
    wait_until(lambda: nothing_runs(hosts, root), 60, "all processes have ended")
    assert job.ends == ["failed: node_failure"]
    assert state(hosts, root) == "failed"
    # 2. Continued on another host in its place, by commands that people type there.
    hosts = Hosts(hosts.cluster, tmp_path / "again", ("n1", "n3"))
    own = ("launch.hosts=[n1,n3]", "launch.start=manual", "launch.rendezvous_endpoint=n1:29555")
    done = hosts.launch("resume", str(root), *own)
    assert done.returncode == 0, done.stderr
    typed = [line.split("  ", 1) for line in done.stdout.splitlines() if "command.sh" in line]
    assert [host for host, _ in typed] == ["on n1", "on n3"]
    # The second one finds out by itself which it is.
    agents = [hosts.on("n3", typed[1][1].removesuffix(" 1")), hosts.on("n1", typed[0][1])]
    wait_until(lambda: _steps_since(job) > 3, 180, "training again")
    (start,) = [start for start in job.starts if start.end is None]
    assert json.loads(start.files.rendezvous.read_text())["port"] == 29555
    # 3. Cancelled from a machine that is none of them.
    cancelled = hosts.launch("cancel", str(root))
    assert cancelled.returncode == 0, cancelled.stderr
    assert "the newest checkpoint is" in cancelled.stdout
    assert [agent.wait(60) for agent in agents] == [0, 0]
    assert job.ends[1] == "stopped: cancelled"
    assert job.starts[1].end["saved_step"] == job.num_steps
    assert state(hosts, root) == "cancelled"


def _steps_since(job: Job) -> int:
    first = job.starts[1].nodes.get("first_step") if len(job.starts) > 1 else None
    return job.num_steps - int(first) if first is not None else 0
