"""A failure in full: rank, node, coordinates, first error, its cause and what to change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.run_yaml import read_run
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.failure.causes import Cause, find_cause
from launcher.failure.first import Failure, Traces, first_failure
from launcher.failure.remedies import Remedy, find_remedies
from launcher.plan.mesh import build_mesh
from launcher.plan.records import layout_from_json
from launcher.plan.run_files import RunFiles


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is known of the end of a job."""

    failure: Failure
    cause: Cause
    place: str
    """`dp 0, pp 1, tp 1`; empty where the plan cannot be read."""
    remedies: tuple[Remedy, ...]
    log: Path
    """Of the rank, or of the job where no rank failed."""
    stacks: Path | None = None
    """Of a hang: the folder with all ranks' stacks, hang_RANK.txt."""

    def __str__(self) -> str:
        """Rank, place and error; then log, cause and remedies, a line each."""
        failure, place = self.failure, f" ({self.place})" if self.place else ""
        who = f"rank {failure.rank} on node {failure.node}{place}"
        if failure.rank < 0:
            who = "the job"
        lines = [f"{who} failed: {failure.error}", f"  log: {self.log}"]
        if self.stacks is not None:
            lines.append(f"  stacks of all ranks: {self.stacks}/hang_*.txt")
        if self.cause.kind != "unknown":
            lines.append(f"  cause: {self.cause.meaning} [{self.cause.kind}]")
        lines += [f"  try {remedy}" for remedy in self.remedies]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The object `failure` in `launch status --json`."""
        return {
            "rank": self.failure.rank if self.failure.rank >= 0 else None,
            "node": self.failure.node,
            "place": self.place or None,
            "error": self.failure.error,
            "time": self.failure.time or None,
            "kind": self.cause.kind,
            "cause": self.cause.meaning,
            "again": self.cause.again,
            "log": str(self.log),
            "stacks": str(self.stacks) if self.stacks else None,
            "remedies": [remedy.to_json() for remedy in self.remedies],
        }


def diagnose(traces: Traces, with_remedies: bool = True) -> Diagnosis | None:
    """The first failure of a job, explained; None where nothing tells of one.

    Remedies for memory take a plan each; without them the answer takes no time.
    """
    failure = first_failure(traces)
    if failure is None:
        return None
    return explain(failure, traces.files, with_remedies)


def explain(
    failure: Failure, files: RunFiles, with_remedies: bool = True, log: Path | None = None
) -> Diagnosis:
    """Cause, coordinates and remedies of a known failure; `log` where it is not its rank's."""
    cause = find_cause(failure.error)
    run = _frozen_run(files) if with_remedies else None
    node = "" if failure.node == "unknown" else failure.node
    return Diagnosis(
        failure=failure,
        cause=cause,
        place=_place(files, failure.rank),
        remedies=find_remedies(cause.kind, run, node, failure.error) if run else (),
        log=log or files.rank_log(failure.rank),
        stacks=None if failure.stacks is None else files.root / failure.stacks,
    )


def _frozen_run(files: RunFiles) -> Run | None:
    try:
        return read_run(files.run)
    except ConfigError:
        return None


def _place(files: RunFiles, rank: int) -> str:
    """Coordinates of a rank in the frozen layout."""
    try:
        mesh = build_mesh(layout_from_json(json.loads(files.plan.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not 0 <= rank < mesh.world_size:
        return ""
    coordinates = mesh.coordinates(rank)
    return ", ".join(f"{axis} {coordinates[axis]}" for axis in ("dp", "pp", "tp"))
