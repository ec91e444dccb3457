"""Which rank the others waited for, from the stacks that they left when they hung."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.plan.run_files import RunFiles

_FRAME = re.compile(r'File "(.+)", line (\d+) in (\S+)')
# Where a rank is that waits for others: torch's collectives, and our files that call them.
_WAITS = re.compile(
    r"torch/distributed/|launcher/runtime/(control|collectives|groups|gradients)\.py|"
    r"launcher/runtime/(pipeline/p2p|parallel/ring|checkpoint/board)\.py"
)
_INNERMOST = 3
"""Frames that are looked at: torch wraps its collectives."""
_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """What one rank left when it hung."""

    rank: int
    node: str
    steps: int
    """Done by then."""
    frames: tuple[str, ...]
    """Of its training thread, innermost first: `FILE:LINE in FUNCTION`."""

    @property
    def waits(self) -> bool:
        """Whether it was in a collective."""
        return any(_WAITS.search(frame) for frame in self.frames[:_INNERMOST])


@dataclass(frozen=True, kw_only=True)
class Behind:
    """The rank that the others waited for."""

    rank: int
    node: str
    """`unknown` where nobody wrote it down."""
    why: str
    """A clause: what tells it from the others."""


def read_stacks(folder: Path) -> list[Stuck]:
    """All ranks' files in a folder, by rank."""
    found = [_read(path) for path in folder.glob("hang_*.txt")]
    return sorted((stuck for stuck in found if stuck), key=lambda stuck: stuck.rank)


def find_behind(files: RunFiles, folder: Path) -> Behind | None:
    """The first rank that did not wait for others; None where all did, or nothing tells."""
    stuck = read_stacks(folder)
    if not stuck:
        return None
    nodes = _nodes(files)
    present = {one.rank for one in stuck}
    absent = [rank for rank in range(len(nodes)) if rank not in present]
    silent = [rank for rank in absent if not files.rank_error(rank).exists()]
    first, why = _of_those_who_spoke(stuck)
    # Ranks that wait may be a step apart, so a late one that waits is no match for a missing one.
    if first is not None and not silent and not (absent and first.waits):
        return Behind(rank=first.rank, node=first.node, why=why)
    # A rank that was stopped may still say a word: Slurm continues what it is about to end.
    missing = silent or absent
    if not missing:
        return None
    why = "no stacks of it: it was stopped, or stuck where Python cannot run"
    return Behind(rank=missing[0], node=nodes[missing[0]], why=why + _and_others(missing))


def _of_those_who_spoke(stuck: Sequence[Stuck]) -> tuple[Stuck | None, str]:
    steps = Counter(one.steps for one in stuck)
    least, most = min(steps), max(steps)
    if least < most:
        late = [one for one in stuck if one.steps == least]
        why = f"it had done {least} steps, others {most}"
    else:
        late = [one for one in stuck if not one.waits]
        why = "it did not wait for others" + (f" but was in {late[0].frames[0]}" if late else "")
    if not late or (len(late) == len(stuck) and len(stuck) > 1):
        return None, ""
    return late[0], why + _and_others([one.rank for one in late])


def _and_others(ranks: Sequence[int]) -> str:
    """The same is true of more."""
    rest = [str(rank) for rank in ranks[1:_NAMED]]
    if not rest:
        return ""
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f" (the same of rank {', '.join(rest)}{more})"


def _nodes(files: RunFiles) -> list[str]:
    """The node of every rank; empty where the ranks never met."""
    try:
        document = json.loads(files.rank_nodes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(node) for node in document] if isinstance(document, list) else []


def _read(path: Path) -> Stuck | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        head, _, stacks = text.partition("\n\n")
        fields = dict(line.split(": ", 1) for line in head.splitlines())
        return Stuck(
            rank=int(fields["rank"]),
            node=fields["node"],
            steps=int(fields["steps"]),
            frames=_frames(stacks, fields["thread"]),
        )
    except (OSError, ValueError, KeyError):
        return None


def _frames(stacks: str, thread: str) -> tuple[str, ...]:
    """Of one thread in what faulthandler wrote."""
    for block in re.split(r"\n(?=(?:Current t|T)hread 0x)", stacks):
        if thread in block.partition("\n")[0]:
            found = _FRAME.findall(block)
            return tuple(f"{file}:{line} in {function}" for file, line, function in found)
    return ()
