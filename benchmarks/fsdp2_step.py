"""Our step at dp=2 with engine=fsdp2, beside a hand-written fully_shard loop over the same model.

python benchmarks/fsdp2_step.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common import machine, report, rounds_argument, run_ranks, time_in_turn
from decoder import make_groups, make_layout, make_microbatches, make_run, make_stage

from launcher.plan.schedule import build_schedule

NUM_MICROBATCHES = 4


def compare(rank: int, rounds: int) -> None:
    for zero_stage in (3, 1):
        compare_stage(rank, rounds, zero_stage)


def compare_stage(rank: int, rounds: int, zero_stage: int) -> None:
    import torch

    from launcher.runtime.engine import build_engine
    from launcher.runtime.model.stage import build_stage
    from launcher.runtime.optimizer import build_optimizer
    from launcher.runtime.pipeline.execute import run_schedule
    from launcher.runtime.pipeline.p2p import build_channels

    run = make_run()
    layout = make_layout(dp=2, zero_stage=zero_stage, num_microbatches=NUM_MICROBATCHES)
    layout = replace(layout, engine="fsdp2")
    groups, microbatches = make_groups(layout), make_microbatches(NUM_MICROBATCHES, seed=rank)

    stage = build_stage(run, layout, make_stage(0, 1), groups)
    engine = build_engine(stage, run, layout, groups, None)
    channels = build_channels(groups, (1, 1, 1), microbatches[0].tokens_BS.dtype)
    schedule = build_schedule("1f1b", 1, NUM_MICROBATCHES)

    def ours() -> None:
        with engine.accumulate():
            run_schedule(schedule, engine, channels, 0, microbatches)
        engine.step(1e-4)

    module = build_stage(run, replace(layout, engine="deepspeed"), make_stage(0, 1), groups)
    plain = hand_written(module, groups, reshards=zero_stage == 3)
    optimizer = build_optimizer(plain.parameters(), run.optimizer)

    def theirs() -> None:
        for index, microbatch in enumerate(microbatches):
            is_last = index == NUM_MICROBATCHES - 1
            if zero_stage == 1:
                plain.set_requires_gradient_sync(is_last)
                plain.set_reshard_after_backward(is_last)
            loss = plain(microbatch.tokens_BS, microbatch.context) / NUM_MICROBATCHES
            loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds = time_in_turn({"launch": ours, "plain fully_shard loop": theirs}, rounds)
    if rank == 0:
        title = f"dp=2, zero_stage={zero_stage}, {NUM_MICROBATCHES} microbatches; {machine()}"
        report(title, seconds, ours="launch")


def hand_written(module: Any, groups: Any, reshards: bool) -> Any:
    """What a user of fully_shard writes."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(groups.dp.group, "cpu")
    for block in module.layers.values():
        fully_shard(block, mesh=mesh, reshard_after_forward=reshards)
    return fully_shard(module, mesh=mesh)


if __name__ == "__main__":
    run_ranks(2, compare, rounds_argument(str(__doc__), default=30))
