"""Real training on the cluster: it ends as if nothing had happened, whatever happens to it."""

from __future__ import annotations

import json
import os
import signal

import pytest

from launcher.node.processes import is_running, words_of
from tests.cluster.runs import Job, launch, submit

STEPS = ("train.steps=120", "checkpoint.every_steps=40")
URGENT = """\
#!/usr/bin/env bash
#SBATCH --output=/dev/null --nodes=4 --partition=urgent --exclusive
sleep 3
"""


@pytest.fixture(scope="module")
def undisturbed(running_cluster, tmp_path_factory) -> Job:
    """The run that the others are compared with."""
    job = submit(running_cluster, tmp_path_factory.mktemp("undisturbed"), "run", *STEPS)
    assert job.wait_for_end() == "COMPLETED", job.log
    return job


def same(job: Job, reference: Job) -> bool:
    return job.weights == reference.weights and job.losses == reference.losses


def test_a_submitted_run_trains_to_its_end_on_two_nodes(cluster, undisturbed):
    assert undisturbed.ends == ["done: finished"]
    assert undisturbed.num_steps == 120
    assert len(undisturbed.starts[0].nodes["nodes"]) == 2
    status = launch(cluster, "status", str(undisturbed.files.root), "--json")
    assert json.loads(status.stdout)["state"] == "done"


def test_a_preempted_run_saves_goes_on_and_ends_with_the_same_weights(
    cluster, undisturbed, tmp_path
):
    job = submit(cluster, tmp_path, "run", *STEPS)
    job.wait_for_step(50)
    script = tmp_path / "urgent.sbatch"
    script.write_text(URGENT)
    cluster.submit(script)
    assert job.wait_for_end() == "COMPLETED", job.log
    assert job.ends == ["requeued: preempted", "done: finished"]
    first = job.starts[0].end
    assert first["last_step"] == first["saved_step"]  # with notice, no step is lost
    logs = job.starts[0].files.root.glob("torchrun_*.log")
    assert not any("exitcode" in path.read_text() for path in logs)  # no rank died of the notice
    assert same(job, undisturbed)


def test_a_node_that_dies_costs_at_most_one_interval(cluster, undisturbed, tmp_path):
    job = submit(cluster, tmp_path, "run", *STEPS)
    job.wait_for_step(50)
    cluster.kill_node(cluster.job_nodes(job.job_id)[1])
    assert job.wait_for_end() == "COMPLETED", job.log
    assert job.ends[-1] == "done: finished"
    assert len(job.ends) == 2
    assert job.starts[1].nodes["first_step"] == 40
    assert same(job, undisturbed)


def stop_a_rank(job: Job) -> int:
    """Stop one training process on the second node, as a stuck driver would."""
    node = job.cluster.job_nodes(job.job_id)[1]
    workers = [
        pid for pid in job.cluster.processes(node) if "launcher.runtime.worker" in words(pid)
    ]
    os.kill(workers[-1], signal.SIGSTOP)
    return workers[-1]


def words(pid: int) -> list[str]:
    """Of a process, without torchrun's, which names what it starts."""
    found = words_of(pid)
    return [] if "torch.distributed.run" in found else found


def test_a_rank_that_hangs_is_named_and_the_job_starts_again_and_ends_the_same(
    cluster, undisturbed, tmp_path
):
    limits = ("launch.hang_timeout_s=15", "launch.max_restarts=1")
    job = submit(cluster, tmp_path, "run", *STEPS, *limits)
    job.wait_for_step(50)
    first = stop_a_rank(job)
    job.wait_for_step(95)  # torchrun has started the workers again
    assert not is_running(first)
    stop_a_rank(job)
    assert job.wait_for_end() == "COMPLETED", job.log
    assert job.ends == ["requeued: hang", "done: finished"]
    start = job.starts[0]
    assert "no stacks of it: it was stopped" in start.end["why"]
    assert start.end["first_error"]["node"] == start.nodes["nodes"][1]
    for kept in ("hang_*.txt", "earlier_*_hang_*.txt"):  # of both hangs
        assert len(list(start.files.root.glob(kept))) == 3
    assert same(job, undisturbed)
