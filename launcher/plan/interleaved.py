"""How long interleaved 1F1B takes: each stage holds several chunks of the model (2104.04473)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.plan.simulate import Simulation


@dataclass(frozen=True, kw_only=True)
class ChunkTimes:
    """One microbatch on one chunk."""

    forward_s: float
    backward_s: float


def interleaved_order(
    stage: int, num_stages: int, num_chunks: int, num_microbatches: int
) -> list[tuple[str, int, int]]:
    """(F or B, microbatch, chunk): groups of num_stages microbatches pass chunk after chunk."""
    forwards = _passes(num_stages, num_chunks, num_microbatches)
    backwards = [(microbatch, num_chunks - 1 - chunk) for microbatch, chunk in forwards]
    total = len(forwards)
    warmup = min(total, 2 * (num_stages - stage - 1) + (num_chunks - 1) * num_stages)
    if num_microbatches == num_stages:
        warmup = total
    order = [("F", *forwards[i]) for i in range(warmup)]
    for i in range(warmup, total):
        order += [("F", *forwards[i]), ("B", *backwards[i - warmup])]
    return order + [("B", *backwards[i]) for i in range(total - warmup, total)]


def _passes(num_stages: int, num_chunks: int, num_microbatches: int) -> list[tuple[int, int]]:
    passes = []
    for start in range(0, num_microbatches, num_stages):
        group = range(start, min(start + num_stages, num_microbatches))
        passes += [(microbatch, chunk) for chunk in range(num_chunks) for microbatch in group]
    return passes


def simulate_interleaved(
    times: Sequence[Sequence[ChunkTimes]], num_microbatches: int, p2p_s: float
) -> Simulation:
    """`times[stage][chunk]`; the last stage's chunk feeds the first stage's next one."""
    num_stages, num_chunks = len(times), len(times[0])
    orders = [
        interleaved_order(stage, num_stages, num_chunks, num_microbatches)
        for stage in range(num_stages)
    ]
    last = num_stages * num_chunks - 1
    done: dict[tuple[str, int, int], float] = {}
    clocks, at = [0.0] * num_stages, [0] * num_stages
    moved = True
    while moved:
        moved = False
        for stage in (*range(num_stages), *reversed(range(num_stages))):
            order, clock, position = orders[stage], clocks[stage], at[stage]
            while position < len(order):
                kind, microbatch, chunk = order[position]
                place = chunk * num_stages + stage
                if kind == "F":
                    need = ("F", microbatch, place - 1) if place else None
                else:
                    need = ("B", microbatch, place + 1) if place < last else ("F", microbatch, last)
                ready = 0.0
                if need is not None:
                    found = done.get(need)
                    if found is None:
                        break
                    ready = found + (p2p_s if need[2] != place else 0.0)
                spent = times[stage][chunk]
                clock = max(clock, ready) + (spent.forward_s if kind == "F" else spent.backward_s)
                done[kind, microbatch, place] = clock
                position, moved = position + 1, True
            clocks[stage], at[stage] = clock, position
    assert all(position == len(order) for position, order in zip(at, orders, strict=True))
    busy = tuple(
        num_microbatches * sum(chunk.forward_s + chunk.backward_s for chunk in chunks)
        for chunks in times
    )
    return Simulation(
        makespan_s=max(clocks),
        finish_s=tuple(clocks),
        busy_s=busy,
        peak_in_flight=tuple(_peak(order) for order in orders),
    )


def _peak(order: Sequence[tuple[str, int, int]]) -> int:
    alive = peak = 0
    for kind, _, _ in order:
        alive += 1 if kind == "F" else -1
        peak = max(peak, alive)
    return peak
