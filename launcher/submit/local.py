"""Runs a written bundle on this machine under torchrun, follows it and ends it cleanly."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from launcher.checkpoint.reader import list_checkpoints
from launcher.config.local_hardware import LocalMachine
from launcher.errors import EXIT_INTERRUPTED, RunFailed, SubmissionRefused
from launcher.plan.records import Plan
from launcher.render.bundle import Bundle
from launcher.submit.crew import Crew, LocalCrew, make_crew
from launcher.submit.follow import MetricsTail, Progress
from launcher.submit.postmortem import explain_failure
from launcher.submit.summary import read_outcome

_POLL_S = 0.1
_ASK_AGAIN_S = 1.0
"""A worker that is still starting does not hear the first signal."""
SAVING_PATIENCE_S = 600.0
"""So long a job may take to save and end after it was asked to."""


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
        crew = make_crew(bundle, plan)
        run_script(bundle, plan, lambda: progress.update(tail.new_entries()), crew)
    finally:
        progress.close()
    outcome = read_outcome(bundle.files)
    if outcome.get("status") == "stopped":
        say_stopped(bundle, outcome)
        raise Interrupted(signal.SIGTERM)


def run_script(
    bundle: Bundle, plan: Plan, on_poll: Callable[[], None], crew: Crew | None = None
) -> None:
    """Run the script of the bundle to its end, calling `on_poll` now and then.

    `crew` is what runs it; None: this machine.

    SIGTERM and SIGUSR1 are passed on: the workers save and end. SIGINT, or a second signal, ends
    them at once. Raises RunFailed with the first real error of the first rank that failed, and
    Interrupted after a signal, with every process gone.
    """
    asked = _Asked()
    previous = {number: signal.signal(number, asked.hear) for number in (signal.SIGINT, *_ASKING)}
    crew = crew or LocalCrew(bundle.script)
    # An earlier attempt's log stays; what is explained below is what this one adds.
    with bundle.files.launcher_log.open("ab") as log:
        log_start = log.tell()
        try:
            crew.start(log)
            while (code := crew.poll()) is None:
                on_poll()
                asked.pass_on(crew)
                time.sleep(_POLL_S)
            on_poll()
        finally:
            crew.end()
            for number, handler in previous.items():
                signal.signal(number, handler)
    if asked.number is not None:
        outcome = read_outcome(bundle.files)
        if outcome.get("status") == "stopped":
            say_stopped(bundle, outcome)
        if outcome.get("status") != "done":
            raise Interrupted(asked.number)
    if code != 0:
        complaint = crew.complaint()
        explained = explain_failure(bundle.files, code, log_start)
        raise RunFailed(f"{complaint}\n{explained}" if complaint else explained)


def say_stopped(bundle: Bundle, outcome: Mapping[str, Any]) -> None:
    """How far a run came that was asked to end, and how it goes on."""
    saved = list_checkpoints(bundle.files.checkpoints)
    way_on = "nothing was saved"
    if saved:
        way_on = f"saved as {saved[0]}; `launch resume {bundle.files.root}` continues"
    print(f"stopped after {outcome['steps']} steps, {way_on}", file=sys.stderr)


_ASKING = (signal.SIGTERM, signal.SIGUSR1)


class _Asked:
    """Remembers that the job was asked to end, and passes it on to the workers."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._passed_at: float | None = None
        self._heard_at = 0.0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler; raises Interrupted where the end is to come at once."""
        if number == signal.SIGINT or self.number is not None:
            raise Interrupted(number)
        self.number, self._heard_at = number, time.monotonic()

    def pass_on(self, crew: Crew) -> None:
        """Ask the workers, again and again while they last; Interrupted when patience ends."""
        if self.number is None:
            return
        now = time.monotonic()
        if now - self._heard_at > SAVING_PATIENCE_S:
            raise Interrupted(self.number)
        if self._passed_at is None:
            name = signal.Signals(self.number).name
            print(f"{name}: the job saves and ends; again, and it ends at once", file=sys.stderr)
        elif now - self._passed_at < _ASK_AGAIN_S:
            return
        self._passed_at = now
        crew.ask()
