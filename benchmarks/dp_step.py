"""Our step at dp=2, ZeRO-1, beside a plain hand-written DeepSpeed loop over the same model.

python benchmarks/dp_step.py
"""

from __future__ import annotations

from typing import Any

from common import machine, report, rounds_argument, run_ranks, time_in_turn
from decoder import make_groups, make_layout, make_microbatches, make_run, make_stage

from launcher.plan.schedule import build_schedule
from launcher.render.deepspeed import render_deepspeed_config

NUM_MICROBATCHES = 4


def compare(rank: int, rounds: int) -> None:
    from launcher.runtime.engine import build_engine
    from launcher.runtime.model.stage import build_stage
    from launcher.runtime.optimizer import build_optimizer
    from launcher.runtime.pipeline.execute import run_schedule
    from launcher.runtime.pipeline.p2p import build_channels

    run, layout = make_run(), make_layout(dp=2, zero_stage=1, num_microbatches=NUM_MICROBATCHES)
    groups, config = make_groups(layout), render_deepspeed_config(run, layout)
    microbatches = make_microbatches(NUM_MICROBATCHES, seed=rank)

    engine = build_engine(
        build_stage(run, layout, make_stage(0, 1), groups), run, layout, groups, config
    )
    channels = build_channels(groups, (1, 1, 1), microbatches[0].tokens_BS.dtype)
    schedule = build_schedule("1f1b", 1, NUM_MICROBATCHES)

    def ours() -> None:
        with engine.accumulate():
            run_schedule(schedule, engine, channels, 0, microbatches)
        engine.step(1e-4)

    plain = hand_written(
        build_stage(run, layout, make_stage(0, 1), groups), build_optimizer, run, config
    )

    def theirs() -> None:
        for microbatch in microbatches:
            loss = plain(microbatch.tokens_BS, microbatch.context)
            plain.backward(loss)
            plain.step()

    seconds = time_in_turn({"launch": ours, "plain DeepSpeed loop": theirs}, rounds)
    if rank == 0:
        report(
            f"dp=2, ZeRO-1, {NUM_MICROBATCHES} microbatches; {machine()}", seconds, ours="launch"
        )


def hand_written(module: Any, build_optimizer: Any, run: Any, config: dict[str, Any]) -> Any:
    """What a user of DeepSpeed writes."""
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=module, optimizer=build_optimizer(module.parameters(), run.optimizer), config=config
    )
    return engine


if __name__ == "__main__":
    run_ranks(2, compare, rounds_argument(str(__doc__), default=40))
