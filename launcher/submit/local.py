"""Runs a written bundle on this machine under torchrun, follows it and ends it cleanly."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

from launcher.config.local_hardware import LocalMachine
from launcher.errors import EXIT_INTERRUPTED, RunFailed, SubmissionRefused
from launcher.plan.records import Plan
from launcher.render.bundle import Bundle
from launcher.submit.follow import MetricsTail, Progress
from launcher.submit.postmortem import explain_failure
from launcher.submit.processes import end_tree

_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Interrupted(KeyboardInterrupt):
    """A signal asked the launcher to end; carries the exit code that the shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else 128 + number


def refuse_if_not_here(plan: Plan, machine: LocalMachine) -> None:
    """Raise SubmissionRefused where this machine does not have the hardware of the plan."""
    hardware = plan.run.hardware
    if hardware.num_nodes > 1:
        raise SubmissionRefused(
            f"launch=local [not-this-machine]: hardware={hardware.name} has {hardware.num_nodes} "
            "nodes, and launch=local starts processes on this machine only. "
            "Try launch=slurm, --dry-run, or `launch plan`."
        )
    if hardware.device == "cuda" and len(machine.gpus) < plan.layout.world_size:
        raise SubmissionRefused(
            f"launch=local [not-this-machine]: the layout needs {plan.layout.world_size} GPUs, and "
            f"this machine has {len(machine.gpus)}. "
            "Try hardware=local, launch=slurm, --dry-run, or `launch plan`."
        )


def run_bundle(bundle: Bundle, plan: Plan, first_step: int = 0) -> None:
    """Start a training run and show its progress to its end; raises as `run_script`.

    `first_step` is where a resumed run goes on.
    """
    tail = MetricsTail(bundle.files.metrics, first_step)
    progress = Progress(plan.run.train.steps)
    try:
        run_script(bundle, plan, on_poll=lambda: progress.update(tail.new_entries()))
    finally:
        progress.close()


def run_script(bundle: Bundle, plan: Plan, on_poll: Callable[[], None]) -> None:
    """Run the script of the bundle to its end, calling `on_poll` now and then.

    Raises RunFailed with the first real error of the first rank that failed, and Interrupted after
    a signal, with every process gone.
    """
    previous = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    # An earlier attempt's log stays; what is explained below is what this one adds.
    with bundle.files.launcher_log.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            ["bash", str(bundle.script)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
        )
        try:
            while process.poll() is None:
                on_poll()
                time.sleep(_POLL_S)
            on_poll()
        finally:
            end_tree(process)
            for number, handler in previous.items():
                signal.signal(number, handler)
    if process.returncode != 0:
        raise RunFailed(explain_failure(bundle.files, plan, process.returncode, log_start))


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _end_with_parent() -> Callable[[], None]:
    """A hook that has the kernel end torchrun when the launcher dies, however it dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def hook() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # It died before the kernel knew of our wish.
            os._exit(1)

    return hook
