"""The classic orders, written down in closed form: naive, GPipe, 1F1B, interleaved, zero bubble.

Every function returns the compute actions of one stage. They are right for any microbatch count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Literal

from launcher.plan.schedule_records import Action

MakeAction = Callable[[Literal["F", "B", "W"], int, int], Action]
"""(kind, microbatch, chunk) -> action; equal actions of all stages may be one object."""


def naive(action: MakeAction, stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """One microbatch at a time goes all the way forward and back: the baseline of textbooks."""
    return [action(kind, i, 0) for i in range(num_microbatches) for kind in ("F", "B")]


def gpipe(action: MakeAction, stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """All forwards, then all backwards in the same order (GPipe, arXiv:1811.06965, sec. 2.3)."""
    microbatches = range(num_microbatches)
    return [action("F", i, 0) for i in microbatches] + [action("B", i, 0) for i in microbatches]


def one_f_one_b(
    action: MakeAction, stage: int, num_stages: int, num_microbatches: int
) -> list[Action]:
    """Warm up, then one forward and one backward in turn, then the backwards that are left.

    PipeDream-Flush (arXiv:2006.09503, sec. 2.2): stage s never holds more than
    min(num_stages - s, num_microbatches) microbatches.
    """
    num_warmup = min(num_stages - stage - 1, num_microbatches)
    num_steady = num_microbatches - num_warmup
    actions = [action("F", i, 0) for i in range(num_warmup)]
    backwards = [action("B", i, 0) for i in range(num_microbatches)]
    actions += in_turn([action("F", num_warmup + i, 0) for i in range(num_steady)], backwards)
    return actions + backwards[num_steady:]


def round_sizes(num_stages: int, num_microbatches: int) -> list[int]:
    """Microbatches that take one chunk in a row: at least one per stage where there are enough.

    Larger rounds come first, so that the first one decides the warm-up.

    round_sizes(4, 8) -> [4, 4];  round_sizes(4, 11) -> [6, 5];  round_sizes(4, 3) -> [3]
    """
    num_rounds = max(1, num_microbatches // num_stages)
    size, rest = divmod(num_microbatches, num_rounds)
    return [size + 1] * rest + [size] * (num_rounds - rest)


def interleaved(
    action: MakeAction, stage: int, num_stages: int, num_microbatches: int, num_chunks: int
) -> list[Action]:
    """Interleaved 1F1B (Megatron-LM, arXiv:2104.04473, sec. 2.2).

    There a round has num_stages microbatches, so these must divide; uneven rounds lift that.
    """
    sizes = round_sizes(num_stages, num_microbatches)
    total = num_microbatches * num_chunks
    num_warmup = min(total, (num_chunks - 1) * sizes[0] + 2 * (num_stages - 1 - stage))
    forwards, backwards = _rounds(action, tuple(sizes), num_chunks)
    actions = forwards[:num_warmup]
    actions += in_turn(forwards[num_warmup:], backwards)
    return actions + backwards[total - num_warmup :]


def zb_h1(
    action: MakeAction, stage: int, num_stages: int, num_microbatches: int, num_chunks: int = 1
) -> list[Action]:
    """ZB-H1 (arXiv:2401.10241, sec. 2.2), with any chunks: 1F1B's memory, less bubble."""
    return _zero_bubble(action, stage, num_stages, num_microbatches, num_chunks, depth=1)


def zb_h2(action: MakeAction, stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """ZB-H2 (arXiv:2401.10241, sec. 2.3): twice 1F1B's memory, no bubble where F = B = W."""
    return _zero_bubble(action, stage, num_stages, num_microbatches, 1, depth=2)


def _zero_bubble(
    action: MakeAction,
    stage: int,
    num_stages: int,
    num_microbatches: int,
    num_chunks: int,
    depth: int,
) -> list[Action]:
    """Later stages, which wait longer for their first forward, put off more weight gradients.

    All stages so hold equally much: num_stages microbatches times the depth, or a little less.
    """
    sizes = round_sizes(num_stages, num_microbatches)
    total = num_microbatches * num_chunks
    hops = depth * (num_stages - 1 - stage)
    num_warmup = min(total, (num_chunks - 1) * sizes[0] + hops)
    forwards, backwards = _rounds(action, tuple(sizes), num_chunks)
    weights = _weights(action, tuple(sizes), num_chunks)
    num_late, num_steady = min(total, depth * stage), total - num_warmup
    # Forwards come with the first of the backwards, weight gradients with all but the late ones.
    first, last = sorted((num_late, num_steady))
    actions = forwards[: num_warmup + first]
    actions[num_warmup:] = in_turn(forwards[num_warmup:], backwards[:first])
    if num_late < num_steady:
        rest = forwards[num_warmup + first :]
        actions += in_turn(rest, backwards[first:last], weights)
    else:
        actions += backwards[first:last]
    actions += in_turn(backwards[last:], weights[last - num_late :])
    return actions + weights[total - num_late :]


def in_turn(*rows: Sequence[Action]) -> list[Action]:
    """One of each, again and again, while all rows last."""
    return list(chain.from_iterable(zip(*rows, strict=False)))


@lru_cache(maxsize=2)
def _weights(action: MakeAction, sizes: tuple[int, ...], num_chunks: int) -> list[Action]:
    """In the order of the backwards; the same on all stages, which leave the list as it is."""
    backwards = _rounds(action, sizes, num_chunks)[1]
    return [action("W", microbatch, chunk) for _, microbatch, chunk in backwards]


@lru_cache(maxsize=2)
def _rounds(
    action: MakeAction, sizes: tuple[int, ...], num_chunks: int
) -> tuple[list[Action], list[Action]]:
    """Forwards and backwards, round by round, chunk by chunk; the same on all stages."""
    forwards: list[Action] = []
    backwards: list[Action] = []
    start = 0
    for size in sizes:
        microbatches = range(start, start + size)
        for chunk in range(num_chunks):
            forwards += [action("F", i, chunk) for i in microbatches]
            backwards += [action("B", i, num_chunks - 1 - chunk) for i in microbatches]
        start += size
    return forwards, backwards
