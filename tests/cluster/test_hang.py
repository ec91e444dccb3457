"""A rank that stands still is named, the job starts again, and the run ends as if nothing was."""

from __future__ import annotations

import random

from tests.cluster.faults import strike, wait_for_recovery
from tests.cluster.runs import INTERVAL, STEPS, same, submit


def test_a_run_with_two_hangs_ends_with_the_weights_of_an_undisturbed_one(
    cluster, undisturbed, tmp_path
):
    limits = ("launch.hang_timeout_s=12", "launch.max_restarts=1")
    job = submit(cluster, tmp_path, "run", *STEPS, *limits)
    # First torchrun starts the workers again, then, that being used up, the queue.
    for number, by in enumerate(("torchrun", "queue"), 1):
        job.wait_for_step(2 * number * INTERVAL + INTERVAL // 4)
        fault = strike(job, "hang", random.Random(0))
        recovery = wait_for_recovery(job, fault)
        assert recovery.by == by
        assert recovery.first_step >= fault.saved
        print(f"hang: training again after {recovery.seconds:.1f} s by {by}")
    assert job.wait_for_end() == "COMPLETED", job.log
    assert job.ends == ["requeued: hang", "done: finished"]
    start = job.starts[0]
    assert "no stacks of it: it was stopped" in start.end["why"]
    assert start.end["first_error"]["node"] == start.nodes["nodes"][1]
    for kept in ("hang_*.txt", "earlier_*_hang_*.txt"):
        assert len(list(start.files.root.glob(kept))) == 3
    assert same(job, undisturbed)
