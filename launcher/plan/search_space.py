"""Which layouts a search looks at: the values of every axis, and how they go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import Any

from launcher.config.rule import divisors
from launcher.config.rules import obeys_rules
from launcher.config.schedule_facts import SCHEDULE_FACTS
from launcher.config.schema import Run
from launcher.frozen import frozen
from launcher.plan.search_choice import (
    OFFLOAD,
    ORDER,
    RECOMPUTE,
    SCHEDULES,
    SHARDING,
    TRAIN_KEYS,
    Choice,
    changed,
    plain_of,
    run_of,
)

OPEN_SCHEDULES = SCHEDULES[:-2]
"""Those that an open search looks at; naive and gpipe are there to compare with, where typed."""

CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Model chunks per stage that an open search looks at: beyond, hops cost what the bubble gains."""


@frozen
class Space:
    """Values of every axis, legal one by one; together they still have to pass the rules."""

    run: Run
    """Model, hardware, precision, batch and everything else that the layouts share."""
    devices: int
    tps: tuple[int, ...]
    cps: tuple[int, ...]
    eps: tuple[int, ...]
    pps: tuple[int, ...]
    dp: int | None
    vpp: int | None
    """Fixed, or open."""
    schedules: tuple[str, ...]
    recomputes: tuple[str, ...]
    sharding: tuple[tuple[str, int, str], ...]
    """(engine, zero_stage, offload)"""
    sequence_parallels: tuple[bool, ...]
    order: tuple[str, ...] | None
    """Fixed, or open."""
    micro_batch_size: int | None
    num_microbatches: int | None

    def batches(self, dp: int) -> Iterator[tuple[int, int]]:
        """(micro_batch_size, num_microbatches) that make the global batch on dp replicas."""
        whole, micro, count = (
            self.run.train.global_batch_size, self.micro_batch_size, self.num_microbatches,
        )  # fmt: skip
        if whole is None:
            if micro and count:
                yield micro, count
            return
        if whole % dp:
            return
        share = whole // dp
        for size in (micro,) if micro else divisors(share) if not count else (share // count,):
            if size and share % size == 0 and count in (None, share // size):
                yield size, share // size

    def pipelines(self, pp: int, count: int) -> Iterator[tuple[str, int]]:
        """Schedules, with model chunks per stage, for `count` microbatches."""
        # One stage works through its microbatches in any order alike.
        for schedule in self.schedules[:1] if pp == 1 else self.schedules:
            facts = SCHEDULE_FACTS.get(schedule)
            if facts is not None and count < facts.microbatches_per_stage * pp:
                continue
            for vpp in self._chunks(schedule, pp):
                if vpp == 1 or pp * vpp <= self.run.model.num_layers:
                    yield schedule, vpp

    def _chunks(self, schedule: str, pp: int) -> Iterator[int]:
        facts = SCHEDULE_FACTS.get(schedule)
        if facts is None or self.vpp is not None:
            yield self.vpp or 1
        elif facts.chunks is not None:
            yield facts.chunks
        elif pp == 1:
            yield 1
        else:  # interleaved_1f1b of one chunk is 1f1b
            least = 2 if schedule == "interleaved_1f1b" and len(self.schedules) > 1 else 1
            most = self.run.model.num_layers // pp
            yield from (chunks for chunks in CHUNKS if least <= chunks <= most)

    def orders(self, tp: int, cp: int, dp: int, pp: int) -> Iterator[tuple[str, ...]]:
        """Rank orders that differ: axes of one rank have no place in them."""
        if self.order is not None:
            yield self.order
            return
        sizes = {"tp": tp, "cp": cp, "dp": dp, "pp": pp}
        long = [axis for axis in ORDER if sizes[axis] > 1]
        for axes in permutations(long):
            waiting = iter(axes)
            yield tuple(next(waiting) if sizes[axis] > 1 else axis for axis in ORDER)


def build_space(run: Run, fixed: frozenset[str], has_planned: bool = False) -> Space:
    """The space around a run whose devices, batch and sequence length are closed.

    `fixed` are the keys of Choice that keep the run's value. `has_planned`: also what can be
    planned, but not be run yet.
    """
    degrees, train = run.parallelism, run.train
    if degrees.layers_per_stage is not None:
        fixed |= {"pp", "vpp"}
    devices = run.hardware.num_nodes * (run.hardware.gpus_per_node or 1)
    bare = changed(run, parallelism=plain_of(run), train=dict.fromkeys(TRAIN_KEYS))

    model = run.model
    experts = model.experts.num_experts if model.experts else 1

    def legal(key: str, candidates: Sequence[Any]) -> tuple[Any, ...]:
        section = train if key in TRAIN_KEYS else degrees
        value = getattr(section, key)
        if key in fixed and value is not None:
            return (value,)
        return tuple(
            candidate
            for candidate in candidates
            # tp with experts dealt out, which then need not be cut: the two are judged together.
            if obeys_rules(
                changed(bare, parallelism={"ep": experts if key == "tp" else 1, key: candidate})
            )
        )

    engines = legal("engine", ("deepspeed", "fsdp2"))
    stages = (degrees.zero_stage,) if "zero_stage" in fixed else (0, 1, 2, 3)
    offloads = legal("offload", OFFLOAD if has_planned else OFFLOAD[:1])
    return Space(
        run=run,
        devices=devices,
        tps=legal("tp", divisors(devices, model.num_heads)),
        cps=legal("cp", divisors(devices)),
        eps=legal("ep", divisors(experts)),
        pps=legal("pp", divisors(devices, model.num_layers)),
        dp=degrees.dp if "dp" in fixed else None,
        vpp=degrees.vpp if "vpp" in fixed else None,
        schedules=(degrees.schedule,) if "schedule" in fixed else OPEN_SCHEDULES,
        recomputes=legal("recompute", RECOMPUTE),
        sharding=tuple(
            one for one in SHARDING if one[0] in engines and one[1] in stages and one[2] in offloads
        ),
        sequence_parallels=legal("sequence_parallel", (False, True)),
        order=degrees.order if "order" in fixed else None,
        micro_batch_size=train.micro_batch_size if "micro_batch_size" in fixed else None,
        num_microbatches=train.num_microbatches if "num_microbatches" in fixed else None,
    )


def enumerate_choices(space: Space) -> Iterator[Choice]:
    """Every legal layout in every order of ranks, whether it fits or not; what searches prune."""
    for tp, cp, ep, pp in product(space.tps, space.cps, space.eps, space.pps):
        dp, rest = divmod(space.devices, tp * cp * pp)
        if rest or space.dp not in (None, dp):
            continue
        for micro, count in space.batches(dp):
            for (schedule, vpp), recompute, (engine, stage, offload), split, order in product(
                space.pipelines(pp, count), space.recomputes, space.sharding,
                space.sequence_parallels, space.orders(tp, cp, dp, pp),
            ):  # fmt: skip
                choice = Choice(
                    tp=tp, cp=cp, ep=ep, pp=pp, vpp=vpp, schedule=schedule, recompute=recompute,
                    engine=engine, zero_stage=stage, offload=offload, sequence_parallel=split,
                    order=order, micro_batch_size=micro, num_microbatches=count, dp=dp,
                )  # fmt: skip
                if obeys_rules(run_of(space.run, choice)):
                    yield choice
