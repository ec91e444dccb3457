"""Real training runs on the test cluster: 2 nodes x 2 processes, a tiny model, gloo."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.checkpoint.reader import newest_verified
from launcher.node.records import Start, list_starts
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
TOY = (
    "recipe=quickstart", "hardware=pair", "launch=slurm",
    "parallelism.pp=1", "parallelism.tp=2", "parallelism.dp=2", "parallelism.schedule=gpipe",
    "train.sequence_length=32", "train.micro_batch_size=2", "train.num_microbatches=1",
    "train.validation_batches=0", "model.num_layers=2", "model.hidden_size=32",
    "model.ffn_hidden_size=64", "launch.max_restarts=0", "launch.check_nodes=false",
    "optimizer.warmup_steps=5",
)  # fmt: skip


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

    def wait_for_end(self, timeout_s: float = 240) -> str:
        wait_until(
            lambda: self.cluster.state(self.job_id) in ENDED,
            timeout_s, "the job ends", lambda: f"{self.cluster.job(self.job_id)} {self.log}",
        )  # fmt: skip
        return self.cluster.state(self.job_id)

    def wait_for_step(self, step: int, timeout_s: float = 120) -> None:
        """Until so many steps are in the metrics."""
        wait_until(
            lambda: self.num_steps >= step, timeout_s, f"step {step}",
            lambda: f"{self.cluster.job(self.job_id)} {self.log}",
        )  # fmt: skip

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


SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --nodes=2 --ntasks-per-node=1 --exclusive --requeue --job-name=toy
#SBATCH --output={run}/logs/slurm-%j.log --open-mode=append --signal=B:USR1@{notice}
set -uo pipefail
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu PYTHONPATH={root}
{python} -m launcher.node start {run} || exit
steps=""
asked=""
notice() {{ asked=$1; [ -z "$steps" ] || kill -s USR1 "$steps" 2>/dev/null; }}
trap 'notice USR1' USR1
trap 'notice TERM' TERM
srun --kill-on-bad-exit=1 {python} -m launcher.node agent {run} &
steps=$!
[ -z "$asked" ] || notice "$asked"
while kill -0 "$steps" 2>/dev/null; do wait "$steps"; done
wait "$steps"
status=$?
LAUNCH_ASKED=$asked {python} -m launcher.node end {run} "$status"
"""
ROOT = Path(__file__).resolve().parents[2]


def conf_dir(folder: Path) -> Path:
    """A site's own conf tree with the hardware of the test cluster."""
    path = folder / "conf" / "hardware" / "pair.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HARDWARE)
    return folder / "conf"


def write_run(folder: Path, name: str, *overrides: str) -> RunFiles:
    from launcher.config.load import load_run
    from launcher.jobs import this_machine
    from launcher.plan.build import build_plan
    from launcher.render.bundle import render_bundle
    from launcher.submit.write import write_bundle

    run = load_run([*TOY, *overrides], config_dirs=(conf_dir(folder),)).run
    plan = build_plan(run)
    bundle = render_bundle(plan, folder / name, this_machine())
    write_bundle(bundle)
    notice = run.launch.signal_seconds
    text = SCRIPT.format(run=bundle.files.root, notice=notice, root=ROOT, python=sys.executable)
    bundle.files.job.write_text(text)
    return bundle.files


def submit(cluster: Cluster, folder: Path, name: str, *overrides: str, options=()) -> Job:
    files = write_run(folder, name, *overrides)
    job_id = cluster.submit(files.job, *options)
    files.submitted.write_text(
        json.dumps({"kind": "slurm", "job_id": job_id, "submitted_at": time.time() - 1})
    )
    return Job(cluster, job_id, files)
