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

MOST_SAMPLES = 2**16
"""Of one step: likewise."""

ACCUMULATION = re.compile(
    r"(?:(?:grad(?:ient)?[-_ ]acc|accum)(?:um)?(?:ulation)?(?:[-_ ]steps)?|\bgas|\bga|micro_num"
    r"|micro[-_ ]?batches(?: per \w+)?)(?:[ =:]+of)?[ =:]+(\d+)"
    r"|(\d+) (?:micro[- ]?batches|(?:grad(?:ient)?[- ])?accumulation steps)"
)
"""In notes: `GAS 32`, `gradient accumulation of 4`, `m = 16 microbatches`."""


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
    stated = _stated_count(cells["notes"].lower())
    samples = _samples(cells, length)
    if samples is not None and (samples * length > MOST_TOKENS or samples > MOST_SAMPLES):
        samples = max(1, round(samples / length))
        assumed.append(f"global_batch={samples}: as it stands it can only be tokens")
    micro = read_integer(cells, "micro_batch", 0)
    if samples is None:
        if not micro:
            raise Unsupported("not published: global_batch, micro_batch")
        if stated is None and pp > 1:
            raise Unsupported("not published: global_batch, or microbatches per step")
        samples = micro * dp * (stated or 1)
        assumed.append(f"global_batch={samples}")
    if not micro:
        micro = _micro(cells, samples // dp, pp, stated)
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


def _stated_count(notes: str) -> int | None:
    found = ACCUMULATION.search(notes)
    return int(found[1] or found[2]) or None if found else None


def _is_local_batch(
    cells: Mapping[str, str], samples: int, at_once: int, pp: int, micro: int
) -> bool:
    """Whether the micro-batch is what a rank's stages share out among them, as torchtitan says it:
    a pipeline that gets its whole batch at once is none.
    """
    has_one = pp > 1 and samples == at_once and micro % pp == 0
    return has_one and find_program(dict(cells)).microbatch_per_stage


def _samples(cells: Mapping[str, str], length: int) -> int | None:
    """`1024`, or `4M tokens`: of 2^20 each where that makes whole samples and 10^6 does not."""
    text = cells["global_batch"].lower()
    tokens = re.fullmatch(r"~?([\d.,]+(?:e\d)?) ?([km]?) ?(?:tok(?:en)?s?)?", text)
    if tokens and (tokens[2] == "m" or "tok" in text):
        value = float(tokens[1].replace(",", ""))
        scales = {"": (1, 1), "k": (10**3, 2**10), "m": (10**6, 2**20)}[tokens[2]]
        decimal, binary = (value * scale / length for scale in scales)
        is_binary = binary == int(binary) and decimal != int(decimal)
        return max(1, round(binary if is_binary else decimal))
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
