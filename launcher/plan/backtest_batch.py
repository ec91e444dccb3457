"""The batch of a row: samples per step, per forward, and how many forwards a replica makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.plan.backtest_cells import BadRow, Unsupported, read_integer, read_number
from launcher.plan.backtest_programs import find_program

MOST_ROUNDING = 0.05
"""Share by which a published batch may miss a multiple of what the layout can do."""

MOST_TOKENS = 2**30
"""Of one step: far more than any run trains on at once."""

ACCUMULATION = re.compile(
    r"(?:grad(?:ient)?[-_ ]acc(?:um(?:ulation)?)?(?:[-_ ]steps)?|\bgas|micro_num"
    r"|num[-_ ]micro[-_ ]?batches)[ =:]+(\d+)"
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples per step and per forward, and forwards per step."""

    samples: int
    micro: int
    count: int


def read_batch(
    cells: Mapping[str, str], dp: int, pp: int, length: int, assumed: list[str]
) -> Batch:
    """What is not published follows from the rest, or is one sample per forward."""
    stated = ACCUMULATION.search(cells["notes"].lower())
    samples = _samples(cells, length)
    if samples is not None and samples * length > MOST_TOKENS:
        samples = max(1, round(samples / length))
        assumed.append(f"global_batch={samples}: as it stands it can only be tokens")
    micro = read_integer(cells, "micro_batch", 0)
    if samples is None:
        if not micro:
            raise Unsupported("not published: global_batch, micro_batch")
        if stated is None and pp > 1:
            raise Unsupported("not published: global_batch, or microbatches per step")
        samples = micro * dp * (int(stated[1]) if stated else 1)
        assumed.append(f"global_batch={samples}")
    if not micro:
        micro = _micro(cells, samples // dp, pp, int(stated[1]) if stated else None)
        assumed.append(f"micro_batch={micro}")
    elif _is_local_batch(cells, samples, micro * dp, pp, micro):
        micro //= pp
        assumed.append(f"micro_batch={micro}: the cell holds a rank's whole batch")
    count = max(1, round(samples / (micro * dp)))
    if abs(count * micro * dp / samples - 1) > MOST_ROUNDING:
        raise BadRow(f"global_batch={samples}: not a multiple of micro_batch x dp = {micro * dp}")
    if count * micro * dp != samples:
        assumed.append(f"global_batch={count * micro * dp}, the nearest that the layout can do")
    return Batch(samples=count * micro * dp, micro=micro, count=count)


def _is_local_batch(
    cells: Mapping[str, str], samples: int, at_once: int, pp: int, micro: int
) -> bool:
    """Whether the micro-batch is what a rank's stages share out among them, as torchtitan says it:
    a pipeline that gets its whole batch at once is none.
    """
    has_one = pp > 1 and samples == at_once and micro % pp == 0
    return has_one and find_program(dict(cells)).microbatch_per_stage


def _samples(cells: Mapping[str, str], length: int) -> int | None:
    """`1024`, or `4M tokens`."""
    text = cells["global_batch"].lower()
    tokens = re.fullmatch(r"([\d.,]+) ?([km]?) ?(?:tok(?:en)?s?)?", text)
    if tokens and (tokens[2] == "m" or "tok" in text):
        scale = {"": 1.0, "k": 1e3, "m": 1e6}[tokens[2]]
        value = float(tokens[1].replace(",", "")) * scale
        return max(1, round(value / length))
    return (
        None
        if read_number(cells, "global_batch") is None
        else read_integer(cells, "global_batch", 1)
    )


def _micro(cells: Mapping[str, str], samples: int, pp: int, count: int | None) -> int:
    """By stated accumulation, by the program's default, or one sample."""
    if count and samples % count == 0 and samples >= count:
        return samples // count
    if not find_program(dict(cells)).microbatch_per_stage or pp == 1:
        return 1
    return max(1, samples // pp) if samples % pp == 0 else 1
