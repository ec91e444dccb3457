"""The processes that check the devices of this node, and what they have said so far."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, Any

from launcher.node.checks.report import STAGES, RankReport
from launcher.node.place import Place
from launcher.node.rendezvous import name_of_this_node
from launcher.plan.records import Layout

MODULE = "launcher.runtime.check"


@dataclass(frozen=True, kw_only=True)
class _Child:
    rank: int
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    complained: IO[bytes]


class CheckProcesses:
    """One per device; what is left of them ends with `end`."""

    def __init__(self, place: Place, layout: Layout, device: str, timeout_s: float) -> None:
        """Starts them."""
        self._children: list[_Child] = []
        per_node = layout.gpus_per_node
        for local_rank in range(per_node):
            rank = place.index * per_node + local_rank
            words = [
                sys.executable, "-m", MODULE,
                f"--device={device}", f"--rank={rank}", f"--local-rank={local_rank}",
                f"--world-size={layout.nodes * per_node}",
                f"--host={name_of_this_node(place.node)}",
                f"--meeting={place.start.check_meeting}", f"--timeout={timeout_s}",
            ]  # fmt: skip
            # Files of no name: pipes would have to be emptied all the time.
            said, complained = _nameless(), _nameless()
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=complained,
                start_new_session=True,
            )  # fmt: skip
            child = _Child(rank=rank, process=process, said=said, complained=complained)
            self._children.append(child)

    def look(self) -> tuple[tuple[RankReport, ...], bool]:
        """What each has done so far, and whether all have ended."""
        has_ended = [child.process.poll() is not None for child in self._children]
        return tuple(_report(child) for child in self._children), all(has_ended)

    def end(self) -> None:
        """Kill what is left."""
        for child in self._children:
            if child.process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(timeout=5.0)
            child.said.close()
            child.complained.close()


def _report(child: _Child) -> RankReport:
    code = child.process.poll()
    fields: dict[str, Any] = {"rank": child.rank}
    for line in _read(child.said).splitlines():
        with contextlib.suppress(ValueError):
            _take(json.loads(line), fields)
    if code and "error" not in fields:
        words = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        last = _read(child.complained).decode(errors="replace").strip().splitlines()[-1:]
        fields["error"] = "; ".join([words, *last])[:500]
    return RankReport(**fields)


def _take(said: dict[str, Any], fields: dict[str, Any]) -> None:
    if "error" in said:
        fields["error"] = str(said["error"])[:500]
    if (stage := said.get("stage")) not in STAGES:
        return
    fields["stage"] = stage
    if "seconds" in said:
        fields[f"{stage}_s"] = float(said["seconds"])
    fields["is_right"] = fields.get("is_right", True) and bool(said.get("is_right", True))


def _nameless() -> IO[bytes]:
    return tempfile.TemporaryFile()


def _read(stream: IO[bytes]) -> bytes:
    return os.pread(stream.fileno(), 65536, 0)
