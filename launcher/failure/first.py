"""Which rank failed first, where and with what error, from what is left of a job."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.failure.causes import telling_line
from launcher.failure.hang import find_behind
from launcher.plan.run_files import RunFiles

# torchrun's table of failures.
_RANK = re.compile(r"rank\s*:\s*(\d+)")
_HOST = re.compile(r"host\s*:\s*(\S+)")
_EXITCODE = re.compile(r"exitcode\s*:\s*(-?\d+)")
_LOG_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The end of one rank."""

    rank: int
    """-1: of no rank, the job as a whole."""
    node: str
    error: str
    """First line of the error."""
    time: float
    """Seconds since the epoch; 0 where unknown."""
    is_echo: bool
    """It failed because another rank was gone."""
    stacks: str | None = None
    """Of a hang: the folder of all ranks' stacks, in the run directory."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Where a job has left words about its end."""

    files: RunFiles
    report: str = ""
    """What torchrun printed in this attempt, on all nodes."""
    since: float = 0.0
    """Seconds since the epoch at which the attempt began; what is older is not its own."""


def first_failure(traces: Traces) -> Failure | None:
    """The earliest error of a rank's own; a killed rank before the errors that it caused."""
    told = sorted(_told_failures(traces), key=lambda failure: failure.time)
    own = [failure for failure in told if not failure.is_echo]
    told_ranks = {failure.rank for failure in told}
    silent = [
        _completed(failure, traces)
        for failure in _silent_ranks(traces.report)
        if failure.rank not in told_ranks
    ]
    candidates = own or silent or told
    return _named(candidates[0], traces.files) if candidates else None


def _named(failure: Failure, files: RunFiles) -> Failure:
    """Of a hang: the rank that the others waited for, in the place of the first that noticed."""
    if failure.stacks is None:
        return failure
    behind = find_behind(files, files.root / failure.stacks)
    if behind is None:
        why = "every rank waited for others, or for its device; the stacks say where"
        return replace(failure, error=f"{failure.error}; {why}")
    return replace(
        failure, rank=behind.rank, node=behind.node, error=f"{failure.error}; {behind.why}"
    )


def report_of(paths: Sequence[Path], start: int = 0) -> str:
    """Text of torchrun's logs from a byte on; those that cannot be read are empty."""
    texts = []
    for path in paths:
        try:
            texts.append(path.read_bytes()[start:].decode(errors="replace"))
        except OSError:
            continue
    return "".join(texts)


def _told_failures(traces: Traces) -> list[Failure]:
    """What ranks wrote before they ended."""
    failures = []
    for path in traces.files.logs.glob("rank_*.error.json"):
        try:
            document: dict[str, Any] = json.loads(path.read_text())
            failure = Failure(
                rank=int(document["rank"]),
                node=str(document["node"]),
                error=str(document["error"]),
                time=float(document["time"]),
                is_echo=bool(document["is_echo"]),
                stacks=document.get("stacks"),
            )
        except (OSError, ValueError, TypeError, KeyError):
            continue  # Torn by the failure itself; the other ranks' files remain.
        if failure.time >= traces.since:
            failures.append(failure)
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


def _completed(failure: Failure, traces: Traces) -> Failure:
    """With the line of the rank's log that tells why, where one does.

    A process that PyTorch's watchdog or a C library ended could write nothing but its log.
    """
    told = telling_line(log_tail(traces.files.rank_log(failure.rank)))
    if told is None:
        return failure
    return Failure(
        rank=failure.rank,
        node=failure.node,
        error=f"{told[0]} ({failure.error})",
        time=failure.time,
        is_echo=False,
    )


def log_tail(path: Path, size: int = _LOG_TAIL_BYTES) -> str:
    """The last bytes of a log as text; empty where it cannot be read."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, 2)
            stream.seek(max(0, end - size))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _signal_words(number: int) -> str:
    reasons = {
        6: "SIGABRT",
        7: "SIGBUS",
        9: "SIGKILL (out of memory, or killed by hand)",
        11: "SIGSEGV",
        15: "SIGTERM",
    }
    return f"killed by signal {reasons.get(number, str(number))}"
