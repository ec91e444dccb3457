"""`launch logs`: the ends of the logs that matter, or all that is written from now on."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError, Finding
from launcher.failure.first import log_tail
from launcher.node.records import list_starts
from launcher.plan.run_files import RunFiles
from launcher.submit.status import Status

_LINES = 20
_LINE_BYTES = 400
"""A guess at the length of a line, to read enough of a file's end."""
_POLL_S = 0.3
_ASK_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class LogPart:
    """The end of one log."""

    path: Path
    text: str


def choose_logs(files: RunFiles, status: Status, rank: int | None) -> list[Path]:
    """Logs that tell most: of the job, and of the rank that failed first, else of rank 0.

    Raises ConfigError for a rank that has written none.
    """
    if rank is not None:
        path = files.rank_log(rank)
        if not path.exists():
            raise ConfigError([_no_such_rank(files, rank)])
        return [path]
    failed = status.failure.failure.rank if status.failure else -1
    own = [files.rank_log(max(0, failed))]
    hangs = []
    if starts := list_starts(files):
        last = starts[-1]
        job = sorted(files.logs.glob(f"slurm-{last.job_id}*.log"))
        job += [] if job else [files.launcher_log]  # what ssh or mpirun said
        job += sorted(last.files.root.glob("torchrun_*.log"))
        hangs = sorted(last.files.root.glob("hang_*.txt"))
    else:
        job = [files.launcher_log, *sorted(files.logs.glob("slurm-*.log"))]
        hangs = sorted(files.logs.glob("hang_*.txt"))
    return [path for path in [*job, *own, *hangs] if path.exists()]


def read_logs(paths: Sequence[Path], lines: int | None = None) -> list[LogPart]:
    """The last lines of each; 0 lines means all of it."""
    count = _LINES if lines is None else lines
    parts = []
    for path in paths:
        if count == 0:
            text = log_tail(path, size=2**40)
        else:
            end = log_tail(path, size=count * _LINE_BYTES + 4096)
            text = "\n".join(end.splitlines()[-count:])
        parts.append(LogPart(path=path, text=text.rstrip("\n")))
    return parts


def render_logs(parts: Sequence[LogPart]) -> str:
    """Like tail(1) on several files; a single one without its name."""
    if len(parts) == 1:
        return parts[0].text
    return "\n\n".join(f"==> {part.path} <==\n{part.text}" for part in parts)


def logs_json(files: RunFiles, parts: Sequence[LogPart]) -> dict[str, Any]:
    """The document of `launch logs --json`."""
    entries = [{"path": str(part.path), "lines": part.text.splitlines()} for part in parts]
    return {"run_dir": str(files.root), "logs": entries}


def follow_logs(
    paths: Callable[[], Sequence[Path]],
    is_over: Callable[[], bool],
    ask_every_s: float = _ASK_EVERY_S,
) -> None:
    """Print what is written from now on, until the job is over and all is read.

    `paths` is asked again now and then: a job that starts anew writes other files.
    """
    out = sys.stdout
    offsets = {path: _size(path) for path in paths()}
    shown: Path | None = None
    asked_at = time.monotonic()
    over = False
    while True:
        for path in list(offsets):
            text, offsets[path] = _read_from(path, offsets[path])
            if text and path != shown:
                print(f"==> {path} <==", file=out)
                shown = path
            if text:
                print(text, end="", file=out, flush=True)
        if over:
            return
        if time.monotonic() - asked_at >= ask_every_s or not offsets:
            over = is_over()
            offsets |= {path: 0 for path in paths() if path not in offsets}
            asked_at = time.monotonic()
        time.sleep(0.0 if over else _POLL_S)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_from(path: Path, offset: int) -> tuple[str, int]:
    """Whole lines from an offset on, and where the next ones will begin."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            block = stream.read()
    except OSError:
        return "", offset
    complete = block[: block.rfind(b"\n") + 1]
    return complete.decode(errors="replace"), offset + len(complete)


def _no_such_rank(files: RunFiles, rank: int) -> Finding:
    names = (re.fullmatch(r"rank_(\d+)\.log", path.name) for path in files.logs.glob("rank_*.log"))
    ranks = sorted(int(match[1]) for match in names if match)
    return Finding(
        field="--rank",
        value=rank,
        rule="no-such-rank",
        reason="this rank has written no log" if ranks else "no rank has written a log yet",
        legal=ranks[:8],
    )
