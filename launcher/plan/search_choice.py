"""One layout of a search as the keys that make it, and the run in that layout."""

from __future__ import annotations

from dataclasses import fields
from itertools import permutations
from typing import Any

from launcher.config.schema import Run, is_schedule_file
from launcher.frozen import frozen
from launcher.plan.fill import build_layout
from launcher.plan.records import Layout

SCHEDULES = ("1f1b", "interleaved_1f1b", "zb_h1", "zb_v", "dualpipev", "zb_h2", "gpipe", "naive")
"""In the order of preference where predictions are equal."""

RECOMPUTE = ("none", "selective", "full")
OFFLOAD = ("none", "optimizer", "parameters")
SHARDING = tuple(
    (engine, stage, offload)
    for engine in ("deepspeed", "fsdp2") for stage in (0, 1, 2, 3) for offload in OFFLOAD
)  # fmt: skip
ORDER = ("tp", "cp", "dp", "pp")
ORDERS = tuple(permutations(ORDER))


@frozen
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
    offload: str
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
            RECOMPUTE.index(self.recompute), self.engine, self.zero_stage,
            OFFLOAD.index(self.offload), self.sequence_parallel,
            tuple(ORDER.index(axis) for axis in self.order), self.micro_batch_size,
        )  # fmt: skip

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a person would call a layout. The rest is tuning of it: chunks, recomputation,
        engine, whether gradients are sharded, sequence parallelism, order of ranks.
        """
        return (
            self.tp, self.cp, self.ep, self.pp, self.micro_batch_size, self.schedule,
            self.zero_stage == 3, self.offload,
        )  # fmt: skip


TRAIN_KEYS = ("micro_batch_size", "num_microbatches")
CHOICE_KEYS = tuple(field.name for field in fields(Choice))
"""Keys that a search decides, under `parallelism` or, for those of TRAIN_KEYS, under `train`."""


def dotted(key: str) -> str:
    """parallelism.tp, train.micro_batch_size"""
    return f"{'train' if key in TRAIN_KEYS else 'parallelism'}.{key}"


PLAIN: dict[str, object] = {
    "tp": None, "cp": 1, "ep": 1, "pp": None, "dp": None, "vpp": 1, "schedule": "1f1b",
    "schedule_lines": None, "recompute": None, "engine": "deepspeed", "zero_stage": 1,
    "offload": "none", "sequence_parallel": False, "order": ORDER,
}  # fmt: skip
"""`parallelism` with every axis open, or plain where it cannot be open."""


def plain_of(run: Run) -> dict[str, object]:
    """The same of this run: blocks that are dealt out by hand are so for its own parts alone."""
    degrees = run.parallelism
    if degrees.layers_per_stage is None:
        return PLAIN
    return PLAIN | {"pp": degrees.pp, "vpp": degrees.vpp, "schedule": degrees.schedule}


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
