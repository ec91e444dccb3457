"""Every pipeline schedule's step beside the same schedule of torch.distributed.pipelining.

    python benchmarks/schedule_step.py [--pp 4]

8 microbatches over the same blocks with the same initial weights: forward, backward, clipping and
AdamW step. The first losses are compared, so that both do the same work. The plan's predicted
time stands beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from common import machine, report, run_ranks, time_in_turn
from decoder import (
    HIDDEN,
    LAYERS,
    MICRO,
    SEQUENCE,
    make_alone,
    make_groups,
    make_layout,
    make_microbatches,
    make_run,
    make_stage,
)
from facts import measure_machine, on_hardware
from pipeline_step import Sequential, clip_by_global_norm, whole_batch
from torch import Tensor

from launcher.config.schema import Hardware
from launcher.plan.execution import runtime_job
from launcher.plan.records import Layout, Stage
from launcher.plan.schedule import SCHEDULES, build_schedule
from launcher.plan.schedule_records import Chain
from launcher.plan.step_time import estimate_job

NUM_MICROBATCHES = 8
Step = Callable[[], float | None]
"""One training step; its loss on the rank that has the head."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One of our schedules, and torch's class for it."""

    ours: str
    torch: str
    num_chunks: int = 1


PAIRS = (
    Pair(ours="gpipe", torch="ScheduleGPipe"),
    Pair(ours="1f1b", torch="Schedule1F1B"),
    Pair(ours="interleaved_1f1b", torch="ScheduleInterleaved1F1B", num_chunks=2),
    Pair(ours="zb_h1", torch="ScheduleInterleavedZeroBubble"),
    Pair(ours="zb_h1", torch="ScheduleInterleavedZeroBubble", num_chunks=2),
    Pair(ours="zb_v", torch="ScheduleZBVZeroBubble", num_chunks=2),
    Pair(ours="dualpipev", torch="ScheduleDualPipeV", num_chunks=2),
)


def compare(rank: int, pair: Pair, rounds: int, launch: int) -> None:
    pp = dist.get_world_size()
    chain = Chain(
        num_stages=pp, num_chunks=pair.num_chunks, placement=SCHEDULES[pair.ours].placement
    )
    builders = {"launch": build_ours, f"torch {pair.torch}": build_torch}
    names = list(builders) if launch % 2 else list(builders)[::-1]
    contestants = {name: builders[name](rank, pair, chain) for name in names}
    losses = [loss for step in contestants.values() if (loss := step()) is not None]
    if losses:
        assert max(losses) - min(losses) < 1e-4, losses
    hardware = measure_machine()
    cpu: dict[str, list[float]] = {}
    seconds = time_in_turn(contestants, rounds, cpu=cpu)
    if rank == 0:
        title = (
            f"{pair.ours}, pp={pp}, {pair.num_chunks} chunks per stage, launch {launch} "
            f"({names[0]} built first); {machine()}"
        )
        report(
            title,
            seconds,
            ours="launch",
            predicted={"launch": predict_s(pair, chain, hardware)},
            cpu=cpu,
        )


def build_ours(rank: int, pair: Pair, chain: Chain) -> Step:
    from launcher.runtime.build import has_queue
    from launcher.runtime.engine import build_engine
    from launcher.runtime.pipeline.execute import run_schedule
    from launcher.runtime.pipeline.p2p import build_channels

    pp, layout = chain.num_stages, schedule_layout(pair, chain)
    groups = make_groups(layout)
    schedule = build_schedule(pair.ours, pp, NUM_MICROBATCHES, pair.num_chunks)
    module = build_module(whole_stage(rank, chain), has_queue(make_run(), layout, schedule))
    engine = build_engine(module, make_run(), layout, groups, {})
    channels = build_channels(groups, (MICRO, SEQUENCE, HIDDEN), torch.float32, schedule.chain)
    microbatches = make_microbatches(NUM_MICROBATCHES, seed=0)

    def step() -> float | None:
        with engine.accumulate():
            loss = run_schedule(schedule, engine, channels, rank, microbatches)
        engine.step(1e-4)
        return None if loss is None else float(loss)

    return step


def schedule_layout(pair: Pair, chain: Chain) -> Layout:
    layout = make_layout(pp=chain.num_stages, num_microbatches=NUM_MICROBATCHES)
    return replace(layout, vpp=pair.num_chunks, schedule=pair.ours)


def predict_s(pair: Pair, chain: Chain, hardware: Hardware) -> float:
    """The plan's time of our step on this machine."""
    pp = chain.num_stages
    job = runtime_job(on_hardware(make_run(), hardware), schedule_layout(pair, chain))
    stages = [whole_stage(rank, chain) for rank in range(pp)]
    return estimate_job(job, stages, chain).time.step_s


def build_torch(rank: int, pair: Pair, chain: Chain) -> Step:
    from torch.distributed import pipelining
    from torch.distributed.pipelining import schedules

    from launcher.runtime.optimizer import build_optimizer

    parts = [chain.part(rank, chunk) for chunk in range(chain.num_chunks)]
    modules = [Sequential(build_module(part_stage(part, chain))) for part in parts]
    stages = [
        pipelining.PipelineStage(module, part, chain.num_parts, torch.device("cpu"))
        for part, module in zip(parts, modules, strict=True)
    ]
    loss_of = modules[-1].loss  # only the model's last part has a head, and it comes last
    is_single = pair.torch in ("ScheduleGPipe", "Schedule1F1B")
    schedule: Any = getattr(schedules, pair.torch)(
        stages[0] if is_single else stages, NUM_MICROBATCHES, loss_fn=loss_of
    )
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = build_optimizer(parameters, make_run().optimizer)
    tokens, labels = whole_batch()
    is_first, is_last = 0 in parts, chain.num_parts - 1 in parts

    def step() -> float | None:
        losses: list[Tensor] = []
        inputs = (tokens,) if is_first else ()
        wanted = {"target": labels, "losses": losses} if is_last else {}
        schedule.step(*inputs, **wanted)
        clip_by_global_norm(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).mean().detach()) if losses else None

    return step


def whole_stage(rank: int, chain: Chain) -> Stage:
    """All parts of a rank as one stage of ours."""
    pieces = [part_stage(chain.part(rank, chunk), chain) for chunk in range(chain.num_chunks)]
    return Stage(
        stage=rank,
        first_layer=min(piece.first_layer for piece in pieces),
        end_layer=max(piece.end_layer for piece in pieces),
        parameters=0,
        is_first=any(piece.is_first for piece in pieces),
        is_last=any(piece.is_last for piece in pieces),
        chunks=tuple((p.first_layer, p.end_layer) for p in pieces) if len(pieces) > 1 else (),
    )


def part_stage(part: int, chain: Chain) -> Stage:
    """One part of the model; equally many blocks in each."""
    return make_stage(part, chain.num_parts)


def build_module(stage: Stage, has_queue: bool = False) -> Any:
    """The module with the initial weights that its layers have everywhere."""
    from launcher.runtime.model.stage import build_stage

    layout = make_layout(pp=1, num_microbatches=NUM_MICROBATCHES)
    return build_stage(make_run(), layout, stage, make_alone(), has_queue)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("--rounds", type=int, default=8, help="counted rounds")
    parser.add_argument("--pp", type=int, action="append", help="stages (default: 2 and 4)")
    parser.add_argument("--only", help="one of our schedules")
    parser.add_argument(
        "--launches", type=int, default=2,
        help="how often processes start anew: where weights happen to lie in memory, the same for "
        "all rounds of one launch, moves its ratio by up to 5 %%",
    )  # fmt: skip
    options = parser.parse_args()
    for pp in options.pp or (2, 4):
        for pair in PAIRS:
            assert LAYERS % (pp * pair.num_chunks) == 0
            if options.only in (None, pair.ours):
                for launch in range(1, options.launches + 1):
                    run_ranks(pp, compare, pair, options.rounds, launch)


if __name__ == "__main__":
    main()
