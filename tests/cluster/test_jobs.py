"""What users do with jobs on the cluster: sweeps, jobs from jobs, limits, cancel and resume."""

from __future__ import annotations

import csv
import json
import shlex
import sys

from tests.cluster.faults import frozen
from tests.cluster.runs import (
    ROOT,
    SMALL,
    STEPS,
    Job,
    job_of,
    launch,
    same,
    status_of,
    submit,
    words,
)
from tests.cluster.slurm import Cluster, wait_until

SHORT = ("train.steps=5", "checkpoint=none")
# As in the terminal of a user who works inside a job: of another shape, on another partition.
OUTER = """\
#!/usr/bin/env bash
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=3 --time=10 --gpus-per-node=1
#SBATCH --partition=brief --output={log}
export SLURM_CPU_BIND=mask_cpu:0x1 SBATCH_PARTITION=urgent SBATCH_TIMELIMIT=1 SRUN_NTASKS=7
export SLURM_NTASKS_PER_NODE=4 SLURM_DISTRIBUTION=cyclic PMI_RANK=3
srun --nodes=1 --ntasks=1 {command}
"""


def test_a_sweep_is_one_array_with_a_limit_and_its_tasks_share_a_node_without_a_clash(
    cluster, tmp_path
):
    sweep = ("-m", "train.seed=1,2,3", "launch.array_limit=2", "launch.nodelist=n1")
    typed = words(tmp_path, "sweep", *SMALL, *SHORT, *sweep)
    done = launch(cluster, *typed, "--wait", timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = [job_of(cluster, tmp_path / "sweep" / str(task)) for task in range(3)]
    assert len({job.job_id.partition("_")[0] for job in jobs}) == 1
    assert [job.ends for job in jobs] == [["done: finished"]] * 3
    assert [job.num_steps for job in jobs] == [5] * 3
    assert len({job.losses[0] for job in jobs}) == 3  # seeds of their own
    rows = csv.DictReader((tmp_path / "sweep" / "measured_runs.csv").open())
    assert sorted(row["id"] for row in rows) == ["0", "1", "2"]
    spans = [(job.starts[0].nodes["started_at"], job.starts[0].end["ended_at"]) for job in jobs]
    assert most_at_once(spans) == 2
    assert {job.starts[0].nodes["nodes"][0] for job in jobs} == {"n1"}
    ports = {json.loads(job.starts[0].files.rendezvous.read_text())["port"] for job in jobs}
    assert len(ports) == 3


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many of these times, from and to, share a moment."""
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


def test_a_run_that_is_submitted_inside_a_job_inherits_nothing_of_it(cluster, tmp_path):
    env = tmp_path / "env"
    setup = f"launch.setup=['env > {env}']"
    inner = [*words(tmp_path, "inner", *SMALL, *SHORT, setup), "--wait"]
    command = shlex.join(["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "launcher", *inner])
    log, script = tmp_path / "outer.log", tmp_path / "outer.sbatch"
    script.write_text(OUTER.format(log=log, command=command))
    outer = cluster.submit(script)
    assert cluster.wait_for(outer, ["COMPLETED", "FAILED"], 400) == "COMPLETED", log.read_text()
    job = job_of(cluster, tmp_path / "inner")
    assert job.ends == ["done: finished"]
    assert cluster.job(job.job_id)["Partition"] == "main"
    variables = dict(line.split("=", 1) for line in env.read_text().splitlines() if "=" in line)
    assert variables["SLURM_JOB_ID"] == job.job_id != outer
    assert variables["SLURM_JOB_NUM_NODES"] == "1"
    leaked = ("SLURM_CPU_BIND", "SLURM_DISTRIBUTION", "SRUN_NTASKS", "PMI_RANK", "SBATCH_PARTITION")
    assert not set(leaked) & set(variables)
    said = log.read_text()  # of --wait
    for text in (f"job {job.job_id} runs on", "the run starts from the beginning", "step 5/5",
                 "5 steps are done"):  # fmt: skip
        assert text in said


def test_a_cancelled_run_has_saved_and_can_be_resumed(cluster, tmp_path):
    job = submit(cluster, tmp_path, "run", "train.steps=100000", "checkpoint.every_steps=null",
                 what=SMALL)  # fmt: skip
    job.wait_for_step(5)
    assert status_of(job)["state"] == "running"
    done = launch(cluster, "cancel", str(job.files.root))
    assert done.returncode == 0, done.stderr
    assert job.ends == ["stopped: cancelled"]
    status = status_of(job)
    assert status["state"] == "cancelled"
    saved = job.num_steps
    assert f"step_{saved:08d}" in done.stdout
    steps = f"train.steps={saved + 5}"
    resumed = launch(cluster, "resume", str(job.files.root), steps)
    assert resumed.returncode == 0, resumed.stderr
    again = job_of(cluster, job.files.root)
    assert again.job_id != job.job_id
    assert again.wait_for_end() == "COMPLETED", again.log
    assert again.ends == ["stopped: cancelled", "done: finished"]
    assert sorted(again.losses) == list(range(saved + 5))
    assert status_of(again)["state"] == "done"


def test_a_time_limit_that_comes_three_times_changes_nothing(cluster, undisturbed, tmp_path):
    # Slurm looks at limits every 30 s and gives notice when signal_seconds + 30 are left, so the
    # notice comes within 30 s of every start. It is waited for at a standstill, or comes before.
    limits = ('launch.time_limit="0:03:00"', "launch.signal_seconds=179")
    job = submit(cluster, tmp_path, "run", *STEPS, *limits)
    for times in range(1, 4):
        job.wait_for_starts(times)
        wait_for_notice(job, 25 * times)
        cluster.wait_for(job.job_id, ["PENDING"], 400)
        if times == 1:
            requeued(cluster, job)
        if times == 3:
            lift_limit(cluster, job)
    assert job.wait_for_end() == "COMPLETED", job.log
    assert job.ends == ["requeued: time_limit"] * 3 + ["done: finished"]
    for start in job.starts[:3]:
        assert start.end["last_step"] == start.end["saved_step"]  # with notice, no step is lost
    assert same(job, undisturbed)


def wait_for_notice(job: Job, step: int) -> None:
    """Until the queue's notice comes; no further than this step."""
    wait_until(
        lambda: noticed(job) or job.num_steps >= step, 400, "a notice or a step", lambda: job.log
    )
    if not noticed(job):
        with frozen(job):
            wait_until(lambda: noticed(job), 120, "the notice", lambda: job.log)


def noticed(job: Job) -> bool:
    """Whether an agent of the present start has heard the queue's notice."""
    records = job.starts[-1].files.root.glob("agent_*.json")
    return any(json.loads(path.read_text())["signal"] for path in records)


def requeued(cluster: Cluster, job: Job) -> None:
    """A job that waits to go on says how often it was requeued and why."""
    cluster.slurm("scontrol", "hold", job.job_id, check=True)
    status = status_of(job)
    cluster.slurm("scontrol", "release", job.job_id, check=True)
    assert status["state"] == "requeued"
    assert "time limit" in status["why"]
    assert [start["reason"] for start in status["starts"]] == ["time_limit"]


def lift_limit(cluster: Cluster, job: Job) -> None:
    """The last start has time for the rest, on a machine of any speed."""
    cluster.slurm("scontrol", "update", f"JobId={job.job_id}", "TimeLimit=60", check=True)
