"""What passes wait at least for weights that are sharded, in every part of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import mul
from typing import NamedTuple

from launcher.plan.collectives import Links, StateTraffic
from launcher.plan.records import Stage
from launcher.plan.search_bounds import Quad, UnitTimes
from launcher.plan.search_cost import Coster
from launcher.plan.search_cuts import Cut, Units
from launcher.plan.search_memory import Sharding
from launcher.plan.search_stages import Stages, choice_in
from launcher.plan.stage_state import copies_s_of, sharded_waits
from launcher.plan.stage_time import Parts

Pieces = tuple[tuple[Units, Stage], ...]
"""Parts of a model, one of every kind."""


class Shares(NamedTuple):
    """Seconds that a part waits at least per second that its pass computes."""

    forward: float
    backward: float


def pieces_of(cuts: Iterable[Cut]) -> Pieces:
    """Of all parts of these cuts."""
    return tuple({units: stage for cut in cuts for units, stage in cut.unit_pieces}.items())


def waiting_shares(
    coster: Coster, stages: Stages, sharding: Sharding, links: Sequence[Links], pieces: Pieces
) -> Shares:
    """The least of any of these parts, over the quickest of some links.

    What a part waits for is shared out over its blocks and ends as they compute, so that any parts
    together wait no less than their blocks and ends do.
    """
    job = coster.job(choice_in(stages, sharding, "1f1b", 1))
    forward, backward = _computing_s(coster.nearest_parts(stages.mesh))
    there, back = [], []
    for units, piece in pieces:
        states = [coster.state(job, piece, one) for one in links]
        traffic = least_traffic([one.traffic for one in states])
        forward_s, backward_s = sum(map(mul, units, forward)), sum(map(mul, units, backward))
        waits = sharded_waits(
            traffic, copies_s_of(job, states[0].parameters), job.execution.overlap_dp,
            forward_s, backward_s,
        )  # fmt: skip
        there.append(waits.forward_s / forward_s if forward_s else 0.0)
        back.append(waits.backward_s / backward_s if backward_s else 0.0)
    return Shares(min(there), min(back))


def least_traffic(found: Sequence[StateTraffic]) -> StateTraffic:
    """The quickest of each."""
    return StateTraffic(
        min([one.reduce_s for one in found]), min([one.gather_s for one in found]),
        found[0].per_microbatch,
    )  # fmt: skip


def with_waits(units: UnitTimes, parts: Parts, shares: Shares) -> UnitTimes:
    """The same with what they wait for."""
    forward, backward = _computing_s(parts)
    return UnitTimes(
        _more(units.forward, shares.forward, forward),
        _more(units.backward, shares.backward, backward),
        units.weight,
    )


def _computing_s(parts: Parts) -> tuple[Quad, Quad]:
    """Forward and backward, of the units of `UnitTimes`."""
    block, dense, first, last = parts
    return (
        (block.forward_s, dense.forward_s, first.forward_s, last.forward_s),
        (
            block.input_s + block.weight_s, dense.input_s + dense.weight_s,
            first.input_s + first.weight_s, last.input_s + last.weight_s,
        ),
    )  # fmt: skip


def _more(times: Quad, share: float, computing: Quad) -> Quad:
    one, two, three, four = [
        each + share * part for each, part in zip(times, computing, strict=True)
    ]
    return one, two, three, four
