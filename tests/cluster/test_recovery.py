"""Real training on the cluster: it ends as if nothing had happened, whatever happens to it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from tests.cluster.faults import Fault, Recovery, heal, strike, wait_for_recovery
from tests.cluster.runs import INTERVAL, NUM_STEPS, STEPS, Job, same, status_of, submit

KINDS = ("rank", "torchrun", "slurmd", "cable", "head")
URGENT = """\
#!/usr/bin/env bash
#SBATCH --output=/dev/null --nodes=4 --partition=urgent --exclusive
sleep 3
"""


@dataclass
class Suffering:
    """A run and what has happened to it, by kind."""

    job: Job = None  # type: ignore[assignment]
    happened: dict[str, tuple[Fault, Recovery]] = field(default_factory=dict)


def test_a_submitted_run_trains_to_its_end_on_two_nodes(cluster, undisturbed):
    assert undisturbed.ends == ["done: finished"]
    assert undisturbed.num_steps == NUM_STEPS
    assert len(undisturbed.starts[0].nodes["nodes"]) == 2
    assert status_of(undisturbed)["state"] == "done"


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


@pytest.fixture(scope="module")
def suffering(running_cluster, tmp_path_factory) -> Suffering:
    """One run to which everything happens, each time as soon as it has saved again."""
    told = Suffering()
    choice = random.Random(0)
    folder = tmp_path_factory.mktemp("suffering")
    told.job = submit(running_cluster, folder, "run", *STEPS, "launch.max_restarts=3")
    for number, kind in enumerate(KINDS, 1):
        told.job.wait_for_step(number * INTERVAL + INTERVAL // 4)
        told.job.wait_for_save(number * INTERVAL)
        fault = strike(told.job, kind, choice)
        recovery = wait_for_recovery(told.job, fault)
        told.happened[kind] = fault, recovery
        heal(told.job, fault)
        print(f"{kind}: {recovery.seconds:.1f} s by {recovery.by}, from {recovery.first_step}")
    assert told.job.wait_for_end() == "COMPLETED", told.job.log
    return told


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_by_itself_with_nothing_lost_that_was_saved(suffering, kind):
    fault, recovery = suffering.happened[kind]
    assert recovery.first_step >= fault.saved
    assert fault.step - recovery.first_step <= INTERVAL
    # What did not cost a node does not go through the queue.
    assert recovery.by == ("torchrun" if kind in ("rank", "torchrun") else "queue")


def test_after_all_of_it_weights_and_losses_are_those_of_an_undisturbed_run(suffering, undisturbed):
    assert same(suffering.job, undisturbed)


def test_every_end_is_on_record_with_its_reason(cluster, suffering):
    job = suffering.job
    assert job.ends == [*["requeued: node_failure"] * 3, "done: finished"]
    assert [start.end["lost_nodes"] for start in job.starts] == [
        *[[suffering.happened[kind][0].node] for kind in ("slurmd", "cable", "head")], []
    ]  # fmt: skip
    told = status_of(job)
    assert told["state"] == "done"
    assert told["num_requeues"] == 3
    assert [start["reason"] for start in told["starts"]][-1] == "finished"
