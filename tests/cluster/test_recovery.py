"""Real training on the cluster: it ends as if nothing had happened, whatever happens to it."""

from __future__ import annotations

import json

import pytest

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
