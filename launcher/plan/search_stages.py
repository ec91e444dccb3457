"""Layouts up to their stages, and what makes whole ones of them."""

from __future__ import annotations

from typing import NamedTuple

from launcher.plan.search_choice import ORDER, Choice
from launcher.plan.search_jobs import Mesh
from launcher.plan.search_memory import Sharding

PLAINEST: Sharding = ("deepspeed", 0, "none")


class Stages(NamedTuple):
    """Degrees, batch and recomputation are decided; these shardings may fit."""

    mesh: Mesh
    pp: int
    dp: int
    num_microbatches: int
    shardings: tuple[Sharding, ...]


def choice_in(stages: Stages, sharding: Sharding, schedule: str, vpp: int) -> Choice:
    """In the plain order of ranks."""
    tp, cp, ep, split, micro, recompute = stages.mesh
    engine, zero_stage, offload = sharding
    return Choice(
        tp=tp, cp=cp, ep=ep, pp=stages.pp, vpp=vpp, schedule=schedule, recompute=recompute,
        engine=engine, zero_stage=zero_stage, offload=offload, sequence_parallel=split, order=ORDER,
        micro_batch_size=micro, num_microbatches=stages.num_microbatches, dp=stages.dp,
    )  # fmt: skip
