"""What every node says of itself before the job: records that travel as JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from launcher.node.checks.gpus import Gpu, Gpus

STAGES = ("started", "product", "met", "all_reduce")
"""How far a rank's checks are: each word means that it is done."""


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """One device."""

    rank: int
    stage: str = "started"
    product_s: float | None = None
    """Of one matrix product."""
    all_reduce_s: float | None = None
    is_right: bool = True
    """Its results are those that they must be."""
    error: str = ""
    """Why it ended early."""

    @property
    def progress(self) -> int:
        """Index of its stage."""
        return STAGES.index(self.stage)


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """One node."""

    node: str
    ranks: tuple[RankReport, ...] = ()
    gpus: Gpus | None = None
    """None: nobody was asked."""
    is_final: bool = False
    """Nothing more will come."""


def report_to_json(report: NodeReport) -> dict[str, Any]:
    """For the shared directory."""
    return asdict(report)


def report_from_json(document: Mapping[str, Any]) -> NodeReport | None:
    """None where it is not one."""
    try:
        gpus = document["gpus"]
        return NodeReport(
            node=str(document["node"]),
            ranks=tuple(RankReport(**rank) for rank in document["ranks"]),
            gpus=None
            if gpus is None
            else Gpus(found=tuple(Gpu(**gpu) for gpu in gpus["found"]), problem=gpus["problem"]),
            is_final=bool(document["is_final"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
