"""Is the number of checkpoints on the disk never underestimated, and not by much overestimated?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.config.schema import Checkpoint
from launcher.plan.build import build_plan
from launcher.plan.disk import count_checkpoints, disk_bytes, largest_keep
from tests.factory import make_run


@pytest.mark.parametrize(
    ("policy", "steps", "step_s", "wanted"),
    [
        ({}, 1000, 1.0, 0),
        ({"every_steps": 10}, 100, 1.0, 10),
        ({"every_steps": 10}, 105, 1.0, 11),
        ({"every_steps": 10, "keep": 2}, 100, 1.0, 3),
        ({"every_steps": 200, "keep": 2}, 100, 1.0, 1),
        ({"every_minutes": 30.0, "keep": 3}, 60, 0.5, 1),
        ({"every_minutes": 1.0}, 600, 1.0, 11),
        ({"every_minutes": 1.0, "every_steps": 100}, 600, 1.0, 16),
        ({"every_minutes": 0.001}, 5, 60.0, 5),
    ],
)
def test_checkpoints_that_lie_on_the_disk_at_once(policy, steps, step_s, wanted):
    assert count_checkpoints(Checkpoint(**policy), steps, step_s) == wanted


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_largest_keep_that_fits_does_fit_and_one_more_does_not(keep):
    plan = build_plan(make_run(**{"train.steps": 100}))
    policy = Checkpoint(every_steps=5, keep=50)
    plan = replace(plan, run=plan.run.model_copy(update={"checkpoint": policy}))
    free = (keep + 1) * plan.checkpoint_bytes
    assert largest_keep(plan, free) == keep
    assert largest_keep(plan, plan.checkpoint_bytes) == 0
    assert disk_bytes(plan) == 20 * plan.checkpoint_bytes
    assert disk_bytes(plan, first_step=90) == 2 * plan.checkpoint_bytes
