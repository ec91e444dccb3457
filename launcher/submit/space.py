"""Refuses a run whose checkpoints would fill the disk: better now than after a week."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from launcher.errors import Finding, SubmissionRefused
from launcher.plan.disk import count_checkpoints, disk_bytes, largest_keep
from launcher.plan.records import Plan


def refuse_if_disk_is_small(plan: Plan, run_dir: Path, first_step: int = 0) -> None:
    """Raise SubmissionRefused where the predicted checkpoints do not fit beside what is there."""
    if finding := disk_finding(plan, run_dir, first_step):
        raise SubmissionRefused(str(finding))


def disk_finding(
    plan: Plan, run_dir: Path, first_step: int = 0, num_runs: int = 1
) -> Finding | None:
    """What is wrong with the room for the checkpoints of so many runs like this one, if anything.

    Those that the run has already (`first_step` > 0) count as room: they are kept or removed by
    the same policy.
    """
    needed = disk_bytes(plan, first_step)
    held = _bytes_in(run_dir / "checkpoints") if first_step else 0
    free = _free_bytes(run_dir)
    if not needed or free is None:
        return None
    room = free // num_runs
    if max(needed - held, plan.checkpoint_bytes) <= room:
        return None
    return _finding(plan, run_dir, first_step, needed, room, held)


def _finding(
    plan: Plan, run_dir: Path, first_step: int, needed: int, free: int, held: int
) -> Finding:
    keep = largest_keep(plan, free + held, first_step)
    number = count_checkpoints(
        plan.run.checkpoint, plan.run.train.steps - first_step, plan.time.step_s
    )
    given = plan.run.checkpoint.keep
    return Finding(
        field="checkpoint.keep",
        value="null" if given is None else given,
        rule="checkpoints-fit-disk",
        reason=f"{number} checkpoint{'' if number == 1 else 's'} of {_gib(plan.checkpoint_bytes)} "
        f"GiB, the one being written included, need {_gib(needed)} GiB, and {run_dir} has "
        f"{_gib(free)} GiB free" + (f" beside {_gib(held)} GiB of checkpoints" if held else ""),
        legal=_some(keep),
        fix=f"checkpoint.keep={keep}" if keep else "--run-dir on a file system with more room",
    )


def _some(keep: int) -> list[int]:
    """1 up to the largest, or its ends where they are many."""
    return list(range(1, keep + 1)) if keep <= 4 else [1, 2, 3, keep]


def _free_bytes(path: Path) -> int | None:
    """Of the file system on which the path is or will be; None where it does not say."""
    for place in (path, *path.parents):
        if os.path.isdir(place):
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _bytes_in(folder: Path) -> int:
    found = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue  # Removed while we looked.
    return found


def _gib(size: int) -> str:
    """3 significant digits for small ones.  _gib(2**30) -> "1.00"."""
    return f"{size / 2**30:,.1f}" if size >= 10 * 2**30 else f"{size / 2**30:.3g}"
