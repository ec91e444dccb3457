"""What a row that is silent may have been: a run that was measured did fit into its devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.plan.backtest_cells import read_cells
from launcher.plan.records import Layout

LARGEST_MICRO_BATCH = 64
"""Samples per forward that are tried."""

SHARDINGS = ("zero1", "zero2", "zero3")
"""Tried in this order where sharding is not published; inside a pipeline the first only."""


def guesses(row: Mapping[str, str | None], layout: Layout) -> Iterator[Iterator[dict[str, str]]]:
    """Cells to try in place of empty ones, the likeliest first; the last ones save most memory.

    First those that compute nothing twice, then, where the row does not say, those that do: of a
    program that gathers weights for every forward these are the faster ones if they let it take
    more of a rank's batch at once. It takes as much as it can.
    """
    cells = read_cells(row)
    micros: list[dict[str, str]] = [{}]
    if not cells["micro_batch"] and layout.zero_stage == 3 and layout.pp == 1:
        samples = layout.micro_batch_size * layout.num_microbatches
        sizes = range(min(samples, LARGEST_MICRO_BATCH), 0, -1)
        micros = [{"micro_batch": str(size)} for size in sizes if samples % size == 0]
    shardings: list[dict[str, str]] = [{}]
    if not cells["zero_or_fsdp"] and layout.dp > 1 and layout.zero_stage == 0:
        known = SHARDINGS[:1] if layout.pp > 1 else SHARDINGS
        shardings += [{"zero_or_fsdp": name} for name in known]
    yield _choices({}, shardings, micros)
    if not cells["recompute"]:
        yield _choices({"recompute": "full"}, shardings, micros)


def last_guesses(
    row: Mapping[str, str | None], layout: Layout
) -> Iterator[Iterator[dict[str, str]]]:
    """Where none of these fits: more is sharded than the program does by itself."""
    cells = read_cells(row)
    if cells["zero_or_fsdp"] or layout.dp == 1 or layout.pp > 1 or layout.zero_stage == 0:
        return
    shardings = [{"zero_or_fsdp": name} for name in SHARDINGS[layout.zero_stage :]]
    for mode in ({},) if cells["recompute"] else ({}, {"recompute": "full"}):
        yield _choices(mode, shardings, [{}])


def _choices(
    mode: dict[str, str], shardings: list[dict[str, str]], micros: list[dict[str, str]]
) -> Iterator[dict[str, str]]:
    for sharding in shardings:
        for micro in micros:
            yield mode | sharding | micro
