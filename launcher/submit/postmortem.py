"""Why a job failed: the rank, node, coordinates and first real error, from what is left of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from launcher.plan.mesh import build_mesh
from launcher.plan.records import Plan
from launcher.plan.run_files import RunFiles

# torchrun's table of failures.
_RANK = re.compile(r"rank\s*:\s*(\d+)")
_HOST = re.compile(r"host\s*:\s*(\S+)")
_EXITCODE = re.compile(r"exitcode\s*:\s*(-?\d+)")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The end of one rank."""

    rank: int
    node: str
    error: str
    """First line of the error."""
    time: float
    """Seconds since the epoch; 0 where unknown."""
    is_echo: bool
    """It failed because another rank was gone."""


def explain_failure(files: RunFiles, plan: Plan, exit_code: int, log_start: int = 0) -> str:
    """The last lines that a user sees: who failed first, where, why and where to read on.

    `log_start` is the byte of torchrun's log at which this attempt begins.
    """
    failure = first_failure(files, log_start)
    if failure is None:
        tail = _tail(_report(files, log_start))
        return f"the run failed with exit code {exit_code}\n{tail}  log: {files.launcher_log}"
    coordinates = build_mesh(plan.layout).coordinates(failure.rank)
    place = ", ".join(f"{axis} {coordinates[axis]}" for axis in ("dp", "pp", "tp"))
    return (
        f"rank {failure.rank} on node {failure.node} ({place}) failed: {failure.error}\n"
        f"  log: {files.rank_log(failure.rank)}"
    )


def first_failure(files: RunFiles, log_start: int = 0) -> Failure | None:
    """The earliest error of a rank's own; a killed rank before the errors that it caused."""
    told = sorted(_told_failures(files), key=lambda failure: failure.time)
    own = [failure for failure in told if not failure.is_echo]
    report = _report(files, log_start)
    told_ranks = {failure.rank for failure in told}
    silent = [failure for failure in _silent_ranks(report) if failure.rank not in told_ranks]
    candidates = own or silent or told
    return candidates[0] if candidates else None


def _told_failures(files: RunFiles) -> list[Failure]:
    """What ranks wrote before they ended."""
    failures = []
    for path in files.logs.glob("rank_*.error.json"):
        try:
            document: dict[str, Any] = json.loads(path.read_text())
            failures.append(Failure(**document))
        except (OSError, ValueError, TypeError):
            continue  # Torn by the failure itself; the other ranks' files remain.
    return failures


def _silent_ranks(report: str) -> list[Failure]:
    """Ranks that could not say anything, from torchrun's own report, its root cause first.

    torchrun ends the other ranks by SIGTERM: apart from the root cause, that is no failure.
    """
    others, _, root = report.rpartition("Root Cause")
    found = [_reported(root)] + [_reported(block) for block in re.split(r"\n\[\d+\]:", others)[1:]]
    first, *rest = found
    killed = [failure for failure in rest if failure and "SIGTERM" not in failure.error]
    return ([first] if first else []) + [failure for failure in killed if failure]


def _reported(block: str) -> Failure | None:
    """One entry of torchrun's table of failures."""
    rank, code, host = _RANK.search(block), _EXITCODE.search(block), _HOST.search(block)
    if not rank or not code:
        return None
    number = int(code[1])
    return Failure(
        rank=int(rank[1]),
        node=host[1] if host else "unknown",
        error=_signal_words(-number) if number < 0 else f"ended with exit code {number}",
        time=0.0,
        is_echo=False,
    )


def _signal_words(number: int) -> str:
    reasons = {9: "SIGKILL (out of memory, or killed by hand)", 11: "SIGSEGV", 15: "SIGTERM"}
    return f"killed by signal {reasons.get(number, str(number))}"


def _report(files: RunFiles, start: int) -> str:
    """What torchrun said in this attempt."""
    try:
        return files.launcher_log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        return ""


def _tail(text: str, lines: int = 8) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines()[-lines:])
