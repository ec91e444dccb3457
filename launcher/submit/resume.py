"""What `launch resume` reads of a run, says to people and writes down."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from launcher.checkpoint.manifest import read_manifest
from launcher.checkpoint.reader import list_checkpoints
from launcher.config.data_content import content_changes
from launcher.config.resume import Change
from launcher.config.run_yaml import read_run
from launcher.config.schema import Run
from launcher.config.validate import validate_run
from launcher.errors import ConfigError, Finding
from launcher.plan.run_files import RunFiles
from launcher.submit.attempts import num_attempts
from launcher.submit.start_point import StartPoint

# Facts that a local machine is asked for again; a line each would hide what was changed by hand.
_FACTS = ("hardware.gpu.", "hardware.node.", "hardware.network.")


def read_frozen_run(files: RunFiles) -> Run:
    """run.yaml of a run directory; ConfigError naming other copies where it cannot be used."""
    copies = [
        str(path)
        for number in range(num_attempts(files), 0, -1)
        if (path := files.attempt(number) / files.run.name).exists()
    ]
    saved = list_checkpoints(files.checkpoints)
    if saved:
        copies.append(f"`run` in {files.checkpoints / saved[0] / 'manifest.json'}")
    if files.plan.exists():
        copies.append(f"`run` in {files.plan}")
    way_out = f"a copy of it in its place, e.g. {copies[0]}" if copies else "a copy in its place"
    return read_run(files.run, way_out)


def saved_run(files: RunFiles, start: StartPoint) -> Run | None:
    """The run as its checkpoint remembers it; None where that is no run of this version."""
    if start.name is None:
        return None
    return validate_run(read_manifest(files.checkpoints / start.name).run)[0]


def replaced_data(files: RunFiles, start: StartPoint, run: Run) -> tuple[Change, ...]:
    """Data that lies here and is not what the checkpoint has read under the same path."""
    if start.name is None:
        return ()
    return content_changes(read_manifest(files.checkpoints / start.name).data, run.data)


def is_finished(files: RunFiles, run: Run) -> bool:
    """Whether the summary says that all steps are done; says so, too."""
    try:
        outcome = json.loads(files.summary.read_text(encoding="utf-8"))["outcome"]
        is_done = outcome["status"] == "done" and outcome["steps"] >= run.train.steps
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if is_done:
        _say_finished(
            int(outcome["steps"]), run.train.steps, bool(list_checkpoints(files.checkpoints))
        )
    return is_done


def has_steps_left(start: StartPoint, steps: int, overrides: Sequence[str]) -> bool:
    """Whether there is anything to do; ConfigError where overrides would have no effect."""
    if start.step < steps:
        return True
    if overrides:
        reason = f"{start.step} steps are done, so no step is left for what was overridden"
        fix = f"train.steps={2 * start.step}"
        raise ConfigError(
            [
                Finding(
                    field="train.steps", value=steps, rule="nothing-to-do", reason=reason, fix=fix
                )
            ]
        )
    _say_finished(start.step, steps, has_saved=True)
    return False


def _say_finished(done: int, steps: int, has_saved: bool) -> None:
    further = f"; train.steps={2 * done} goes on" if has_saved else ""
    print(f"finished: {done} of {steps} steps are done{further}")


def say_start(start: StartPoint, changes: Sequence[Change], stream: TextIO) -> None:
    """Where the run goes on and what is changed; changes of the numbers first and loudly."""
    lines = [f"{name} is refused: {reason}" for name, reason in start.refused]
    lines.append(
        f"continuing after step {start.step} from {start.name}"
        if start.name
        else "starting from scratch; what there was is put aside"
    )
    numerics = [change for change in changes if change.kind == "numerics"]
    lines += [f"CHANGES THE NUMBERS  {change}" for change in numerics]
    if numerics:
        lines.append(
            f"  from step {start.step + 1} on the loss is not the one that the run would have had"
        )
    lines += [f"resharding  {change}" for change in changes if change.kind == "resharding"]
    safe = [change for change in changes if change.kind == "safe"]
    facts = [change for change in safe if change.key.startswith(_FACTS)]
    lines += [f"safe  {change}" for change in safe if change not in facts]
    if facts:
        lines.append(f"safe  {len(facts)} facts of the hardware, for predictions only")
    print("\n".join(lines), file=stream, flush=True)


def record_text(
    files: RunFiles, start: StartPoint, changes: Sequence[Change], overrides: Sequence[str]
) -> str:
    """resume.json: which attempt this is, where it begins and what it changes."""
    document = {
        "attempt": num_attempts(files) + 2,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "first_step": start.step,
        "checkpoint": start.name,
        "refused": [{"checkpoint": name, "reason": reason} for name, reason in start.refused],
        "overrides": list(overrides),
        "changes": [
            {"key": change.key, "class": change.kind, "old": change.old, "new": change.new}
            for change in changes
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def aside(files: RunFiles) -> tuple[Path, ...]:
    """What a run that starts from scratch puts aside."""
    return files.has_saved, files.checkpoints, files.metrics
