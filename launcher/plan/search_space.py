"""Which layouts a search looks at: the values of every axis, and what a choice of them makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

from launcher.config.rule import divisors
from launcher.config.rules import obeys_rules
from launcher.config.rules_pipeline import SCHEDULE_FACTS
from launcher.config.schema import Run, is_schedule_file
from launcher.plan.fill import build_layout
from launcher.plan.records import Layout

SCHEDULES = ("1f1b", "interleaved_1f1b", "zb_h1", "zb_v", "dualpipev", "zb_h2", "gpipe", "naive")
"""In the order of preference where predictions are equal."""

OPEN_SCHEDULES = SCHEDULES[:-2]
"""Those that an open search looks at: naive never is the fastest, and gpipe only keeps more."""

CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Model chunks per stage that an open search looks at: beyond, hops cost what the bubble gains."""

RECOMPUTE = ("none", "selective", "full")
SHARDING = tuple(
    (engine, stage) for engine in ("deepspeed", "fsdp2") for stage in (0, 1, 2, 3)
)  # fmt: skip
ORDER = ("tp", "cp", "dp", "pp")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One layout, as the keys that make it; in the order in which ties are broken.

    Of two layouts that are predicted to be equally fast, the one with the smaller value in the
    first field that differs comes first; words are in the order of the tables above.
    """

    tp: int
    cp: int
    ep: int
    pp: int
    vpp: int
    schedule: str
    recompute: str
    engine: str
    zero_stage: int
    sequence_parallel: bool
    order: tuple[str, ...]
    micro_batch_size: int
    num_microbatches: int
    dp: int

    @property
    def tie(self) -> tuple[Any, ...]:
        """What equal predictions are sorted by."""
        schedule = SCHEDULES.index(self.schedule) if self.schedule in SCHEDULES else -1
        return (
            self.tp, self.cp, self.ep, self.pp, self.vpp, schedule,
            RECOMPUTE.index(self.recompute), self.engine, self.zero_stage, self.sequence_parallel,
            tuple(ORDER.index(axis) for axis in self.order), self.micro_batch_size,
        )  # fmt: skip


TRAIN_KEYS = ("micro_batch_size", "num_microbatches")
CHOICE_KEYS = tuple(field.name for field in fields(Choice))
"""Keys that a search decides, under `parallelism` or, for those of TRAIN_KEYS, under `train`."""


def dotted(key: str) -> str:
    """parallelism.tp, train.micro_batch_size"""
    return f"{'train' if key in TRAIN_KEYS else 'parallelism'}.{key}"


@dataclass(frozen=True, kw_only=True)
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
    sharding: tuple[tuple[str, int], ...]
    """(engine, zero_stage)"""
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

    def chunks(self, schedule: str, pp: int) -> Iterator[int]:
        """Legal numbers of model chunks per stage."""
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


def build_space(run: Run, fixed: frozenset[str]) -> Space:
    """The space around a run whose devices, batch and sequence length are closed.

    `fixed` are the keys of Choice that keep the run's value.
    """
    degrees, train = run.parallelism, run.train
    devices = run.hardware.num_nodes * (run.hardware.gpus_per_node or 1)
    bare = _open(run)

    def legal(key: str, candidates: Sequence[Any]) -> tuple[Any, ...]:
        section = train if key in TRAIN_KEYS else degrees
        value = getattr(section, key)
        if key in fixed and value is not None:
            return (value,)
        return tuple(
            candidate
            for candidate in candidates
            if obeys_rules(changed(bare, parallelism={key: candidate}))
        )

    model = run.model
    experts = model.experts.num_experts if model.experts else 1
    engines = legal("engine", ("deepspeed", "fsdp2"))
    stages = (degrees.zero_stage,) if "zero_stage" in fixed else (0, 1, 2, 3)
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
        sharding=tuple(pair for pair in SHARDING if pair[0] in engines and pair[1] in stages),
        sequence_parallels=legal("sequence_parallel", (False, True)),
        order=degrees.order if "order" in fixed else None,
        micro_batch_size=train.micro_batch_size if "micro_batch_size" in fixed else None,
        num_microbatches=train.num_microbatches if "num_microbatches" in fixed else None,
    )


def _open(run: Run) -> Run:
    """The run with every axis open, or plain where it cannot be open."""
    return changed(
        run,
        parallelism={
            "tp": None, "cp": 1, "ep": 1, "pp": None, "dp": None, "vpp": 1, "schedule": "1f1b",
            "schedule_lines": None, "recompute": None, "engine": "deepspeed", "zero_stage": 1,
            "sequence_parallel": False, "order": ORDER,
        },
        train={"micro_batch_size": None, "num_microbatches": None},
    )  # fmt: skip


def changed(run: Run, **sections: dict[str, Any]) -> Run:
    """A copy with some keys of some sections replaced, unvalidated."""
    return run.model_copy(
        update={
            name: getattr(run, name).model_copy(update=values) for name, values in sections.items()
        }
    )


def run_of(run: Run, choice: Choice) -> Run:
    """The run in this layout, nothing open."""
    values = {key: getattr(choice, key) for key in CHOICE_KEYS}
    count, micro = values.pop("num_microbatches"), values.pop("micro_batch_size")
    if not is_schedule_file(choice.schedule):
        values["schedule_lines"] = None
    batch = {
        "micro_batch_size": micro,
        "num_microbatches": count,
        "global_batch_size": micro * count * choice.dp,
    }
    return changed(run, parallelism=values, train=batch)


def layout_of(run: Run, choice: Choice) -> tuple[Run, Layout]:
    """The run in this layout, and the layout."""
    filled = run_of(run, choice)
    return filled, build_layout(filled)


def choice_of(run: Run) -> Choice:
    """The layout of a run in which nothing is open."""
    degrees, train = run.parallelism, run.train
    return Choice(**{
        key: getattr(train if key in TRAIN_KEYS else degrees, key) for key in CHOICE_KEYS
    })  # fmt: skip
