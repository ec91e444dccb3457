"""How much disk the checkpoints of a run take at the most."""

from __future__ import annotations

import math

from launcher.config.schema import Checkpoint
from launcher.plan.records import Plan


def count_checkpoints(policy: Checkpoint, steps: int, step_s: float) -> int:
    """Checkpoints that lie on the disk at once, the one being written included.

    Args:
        policy: when is saved and what is kept.
        steps: that are to come.
        step_s: seconds of one, predicted.

    count_checkpoints(every_steps=10, keep=2, steps=100) -> 3, the third on its way

    """
    if policy.every_steps is None and policy.every_minutes is None:
        return 0  # On demand only.
    by_steps = steps // policy.every_steps if policy.every_steps else 0
    by_time = int(steps * step_s / (60 * policy.every_minutes)) if policy.every_minutes else 0
    # The last step is saved whether or not it is due.
    is_last_due = policy.every_steps is not None and steps % policy.every_steps == 0
    saved = min(max(steps, 1), by_steps + by_time + (not is_last_due))
    if policy.keep is None:
        return saved
    forever = saved // policy.keep_every if policy.keep_every else 0
    return min(saved, policy.keep + 1 + forever)


def disk_bytes(plan: Plan, first_step: int = 0) -> int:
    """Predicted size of all checkpoints of a run that lie on the disk at once."""
    steps = plan.run.train.steps - first_step
    number = count_checkpoints(plan.run.checkpoint, steps, plan.time.step_s)
    return number * plan.checkpoint_bytes


def largest_keep(plan: Plan, free_bytes: int, first_step: int = 0) -> int:
    """The largest checkpoint.keep whose checkpoints fit; 0 where not even one does."""
    steps, policy = plan.run.train.steps - first_step, plan.run.checkpoint
    room = free_bytes // plan.checkpoint_bytes
    keep = 0
    for candidate in _doubled(math.inf if policy.keep is None else policy.keep, room):
        tried = policy.model_copy(update={"keep": candidate})
        if count_checkpoints(tried, steps, plan.time.step_s) <= room:
            keep = candidate
    return keep


def _doubled(end: float, room: int) -> range:
    """Numbers worth trying: below the wanted one and no more than there is room for."""
    return range(1, int(min(end, room, 10_000)) + 1)
