"""Real training on plain hosts, without a queue: started by ssh, by hand and by Open MPI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.plan.run_files import RunFiles
from tests.cluster.hosts import TOY, Hosts
from tests.cluster.runs import Job

HOSTS = ("launch.hosts=[n1,n2]", "hardware=pair")
LONG = ("train.steps=4000", "checkpoint.every_steps=10", "checkpoint.keep=2")


@pytest.fixture
def hosts(cluster, tmp_path) -> Hosts:
    return Hosts(cluster, tmp_path / "here", ("n1", "n2"))


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
