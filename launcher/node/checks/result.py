"""What the checks of a start of a job have found, for those who come later."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.node.records import read_record
from launcher.plan.run_files import StartFiles


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Nothing in it: all is well, or nothing was checked."""

    bad_nodes: tuple[str, ...] = ()
    why: str = ""
    """What was found, in words; also where nobody could be named."""
    is_everywhere: bool = False
    """All nodes have the same fault."""


def read_checks(start: StartFiles) -> Checks:
    """The verdict; where there is none, nodes that have not written a word."""
    verdict = read_record(start.check_verdict) or {}
    if verdict.get("ok"):
        return Checks()
    records = [read_record(path) or {} for path in sorted(start.root.glob("check_*.json"))]
    bad = tuple(str(record["node"]) for record in records if record.get("ok") is False)
    if not verdict and not bad:
        return _unfinished(start)
    return Checks(
        bad_nodes=bad,
        why=str(verdict.get("why") or ""),
        is_everywhere=bool(verdict.get("is_everywhere")),
    )


def _unfinished(start: StartFiles) -> Checks:
    """The first node has not judged: those that others would have waited for are named."""
    nodes = (read_record(start.nodes) or {}).get("nodes") or []
    silent = tuple(str(node) for node in nodes if not start.report(str(node)).exists())
    if not start.checks.exists() or not silent or len(silent) == len(nodes):
        return Checks()
    why = f"{', '.join(silent)}: no answer; the run directory is not seen there, or nothing started"
    return Checks(bad_nodes=silent, why=why)
