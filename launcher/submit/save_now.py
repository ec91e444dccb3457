"""Asks a running job for a checkpoint and waits until it is published."""

from __future__ import annotations

import time

from launcher.checkpoint.lock import holder_of
from launcher.checkpoint.reader import list_checkpoints
from launcher.errors import Finding, RunFailed, SubmissionRefused
from launcher.plan.run_files import RunFiles
from launcher.submit.follow import MetricsTail

_POLL_S = 0.1


def save_now(files: RunFiles, timeout_s: float) -> str:
    """Name of the checkpoint that the job has made for us.

    Raises SubmissionRefused where no job runs, RunFailed where it could not save, ended first or
    did not answer in time.
    """
    if holder_of(files.job_lock) is None:
        raise SubmissionRefused(str(_not_running(files)))
    before = set(list_checkpoints(files.checkpoints))
    tail = MetricsTail(files.metrics, first_step=1)
    deadline = time.monotonic() + timeout_s
    try:
        files.save_request.touch()
        while time.monotonic() < deadline:
            # In this order: what the job publishes last, before it ends, is still seen.
            is_running = holder_of(files.job_lock) is not None
            errors = [entry for entry in tail.new_entries() if "checkpoint_error" in entry]
            new = [name for name in list_checkpoints(files.checkpoints) if name not in before]
            if new:
                return new[0]
            if errors:
                raise RunFailed(f"the checkpoint was not written: {errors[0]['checkpoint_error']}")
            if not is_running:
                raise RunFailed("the job ended before it saved")
            time.sleep(_POLL_S)
    except OSError as error:
        raise RunFailed(f"{files.save_request} cannot be written: {error.strerror}") from error
    finally:
        if holder_of(files.job_lock) is None:
            files.save_request.unlink(missing_ok=True)
    raise RunFailed(
        f"no checkpoint within {timeout_s:g} s; the request stands, and the job answers it after "
        "its next step. Try a longer --timeout"
    )


def _not_running(files: RunFiles) -> Finding:
    return Finding(
        field=str(files.root),
        rule="not-running",
        reason="no job runs in it, and only a running job can save",
        fix=f"launch resume {files.root}",
    )
