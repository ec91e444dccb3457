"""Real training runs on the test cluster: 2 nodes x 2 processes, a tiny model, gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.checkpoint.reader import newest_verified
from launcher.node.records import Start, list_starts
from launcher.node.steps import saved_step
from launcher.plan.run_files import RunFiles
from tests.cluster.slurm import Cluster, wait_until

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
HARDWARE = """\
defaults:
  - local
  - network: roce_100
  - _self_
name: local
num_nodes: 2
gpus_per_node: 2
device: cpu
"""
SINGLE = HARDWARE.replace("num_nodes: 2", "num_nodes: 1").replace("node: 2", "node: 1")
TOY = (
    "recipe=quickstart", "hardware=pair", "launch=slurm",
    "parallelism.pp=1", "parallelism.tp=2", "parallelism.dp=2", "parallelism.schedule=gpipe",
    "train.sequence_length=32", "train.micro_batch_size=2", "train.num_microbatches=1",
    "train.validation_batches=0", "model.num_layers=2", "model.hidden_size=32",
    "model.ffn_hidden_size=64", "launch.max_restarts=0", "launch.check_nodes=false",
    "optimizer.warmup_steps=5",
)  # fmt: skip
SMALL = (*TOY, "hardware=single", "parallelism.tp=1", "parallelism.dp=1", "launch.exclusive=false",
         "launch.gres=none", "launch.cpus_per_task=2")  # fmt: skip
"""One process, beside others on its node."""


INTERVAL = 20
NUM_STEPS = 160
STEPS = (f"train.steps={NUM_STEPS}", f"checkpoint.every_steps={INTERVAL}")
"""Of runs to which something happens."""


@dataclass
class Job:
    """A submitted run."""

    cluster: Cluster
    job_id: str
    files: RunFiles

    @property
    def starts(self) -> list[Start]:
        return list_starts(self.files)

    @property
    def ends(self) -> list[str]:
        """How every start ended: `requeued by preempted`."""
        ends = [start.end or {} for start in self.starts]
        return [f"{end.get('status')}: {end.get('reason')}" for end in ends]

    @property
    def log(self) -> str:
        logs = sorted(self.files.logs.glob("slurm-*.log"))
        return "".join(path.read_text(errors="replace") for path in logs)

    def wait_for_end(self, timeout_s: float = 400) -> str:
        wait_until(
            lambda: self.cluster.state(self.job_id) in ENDED,
            timeout_s, "the job ends", lambda: f"{self.cluster.job(self.job_id)} {self.log}",
        )  # fmt: skip
        return self.cluster.state(self.job_id)

    def wait_for_starts(self, count: int, timeout_s: float = 400) -> None:
        """Until the job has been started so often."""
        wait_until(lambda: len(self.starts) >= count, timeout_s, f"start {count}")

    def wait_for_step(self, step: int, timeout_s: float = 400) -> None:
        """Until so many steps are in the metrics."""
        wait_until(
            lambda: self.num_steps >= step, timeout_s, f"step {step}",
            lambda: f"{self.cluster.job(self.job_id)} {self.log}",
        )  # fmt: skip

    def wait_for_save(self, step: int, timeout_s: float = 120) -> None:
        """Until a checkpoint of this step or a later one is whole."""
        wait_until(lambda: self.saved_step >= step, timeout_s, f"a checkpoint of step {step}")

    @property
    def entries(self) -> list[dict[str, Any]]:
        try:
            lines = self.files.metrics.read_text().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    @property
    def num_steps(self) -> int:
        return max((e["step"] + 1 for e in self.entries if "loss" in e), default=0)

    @property
    def saved_step(self) -> int:
        """Steps in the newest checkpoint."""
        return saved_step(self.files)

    @property
    def num_resumes(self) -> int:
        """How often it was continued from a checkpoint."""
        return sum("resumed_from" in entry for entry in self.entries)

    @property
    def resumed_at(self) -> int:
        """Steps that were done when it was continued last."""
        return max((e["step"] + 1 for e in self.entries if "resumed_from" in e), default=0)

    @property
    def has_stepped(self) -> bool:
        """Whether a step was done since it was continued last."""
        return self.num_steps > self.resumed_at

    @property
    def losses(self) -> dict[int, float]:
        found = [(entry["step"], entry["loss"]) for entry in self.entries if "loss" in entry]
        assert len(found) == len(dict(found)), "a step is there twice"
        return dict(found)

    @property
    def weights(self) -> dict[str, bytes]:
        """Content of every tensor of the newest checkpoint."""
        checkpoint = newest_verified(self.files.checkpoints).checkpoint
        assert checkpoint is not None
        source = checkpoint.source("weight")
        return {
            name: source.read(name, (0,) * len(source.shape(name)), source.shape(name)).tobytes()
            for name in source.names()
        }


def same(job: Job, reference: Job) -> bool:
    """Whether every loss and every byte of the final weights is the same."""
    return job.weights == reference.weights and job.losses == reference.losses


ROOT = Path(__file__).resolve().parents[2]


def conf_dir(folder: Path) -> Path:
    """A site's own conf tree with the hardware of the test cluster."""
    hardware = folder / "conf" / "hardware"
    hardware.mkdir(parents=True, exist_ok=True)
    (hardware / "pair.yaml").write_text(HARDWARE)
    (hardware / "single.yaml").write_text(SINGLE)
    return folder / "conf"


def submit(
    cluster: Cluster, folder: Path, name: str, *overrides: str, what: Sequence[str] = TOY
) -> Job:
    """Submit a run as a user does, by the command; it must say the job."""
    done = launch(cluster, *words(folder, name, *what, *overrides))
    assert done.returncode == 0, done.stdout + done.stderr
    job = job_of(cluster, folder / name)
    assert f"job {job.job_id}" in done.stdout
    return job


def words(folder: Path, name: str, *overrides: str) -> list[str]:
    """What is typed after `launch`."""
    flags = ["--config-dir", str(conf_dir(folder)), "--run-dir", str(folder / name)]
    return ["run", *flags, *overrides]


def job_of(cluster: Cluster, run_dir: Path) -> Job:
    """The job of a run that was submitted; a task of an array has an id of two numbers."""
    files = RunFiles(root=run_dir)
    record = json.loads(files.submitted.read_text())
    task = record["array_task"]
    job_id = record["job_id"] if task is None else f"{record['job_id']}_{task}"
    return Job(cluster, job_id, files)


def launch(
    cluster: Cluster, *arguments: str, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """One command line on the machine from which jobs are submitted."""
    environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        env=environment, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def status_of(job: Job) -> dict[str, Any]:
    """What `launch status --json` says."""
    done = launch(job.cluster, "status", str(job.files.root), "--json")
    document: dict[str, Any] = json.loads(done.stdout)
    return document
