"""The model cut into parts, as a search keeps it: which parts are alike, and where they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

from launcher.config.schema import Model, Run
from launcher.frozen import frozen
from launcher.plan.records import Stage
from launcher.plan.schedule_records import Chain
from launcher.plan.stage_time import Parts
from launcher.plan.stages import (
    Shares,
    count_dense_layers,
    dense_layers_of,
    make_stages,
    split_evenly,
)

Units = tuple[int, int, int, int]
"""Of some parts together: blocks, those of them without experts apart, first ends, last ends."""


class Probe(NamedTuple):
    """A stage that a bound looks at."""

    stage: int
    own: Units
    """Its parts."""
    before: Units
    """First parts of the stages before it."""
    own_but_last: Units
    last: Units
    """Its last part."""


@frozen
class Cut:
    """The model in parts, and which of them are alike."""

    model: Model
    chain: Chain
    bounds: tuple[tuple[int, int], ...]
    pieces: tuple[Stage, ...]
    """One part of every kind."""
    kinds: tuple[int, ...]
    """Index into `pieces`, part by part in the model's order."""

    @cached_property
    def piece_kinds(self) -> tuple[tuple[int, int, bool, bool], ...]:
        """Blocks, of them those without experts, and the ends that each of `pieces` has."""
        return tuple(
            (piece.num_layers, count_dense_layers(self.model, piece.first_layer, piece.end_layer),
             piece.is_first, piece.is_last)
            for piece in self.pieces
        )  # fmt: skip

    @cached_property
    def unit_pieces(self) -> tuple[tuple[Units, Stage], ...]:
        """Of every kind of parts its units, and one of them."""
        return tuple((self._units((kind,)), piece) for kind, piece in enumerate(self.pieces))

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """As `plan_stages` has them."""
        return make_stages(self.model, self.chain, self.bounds)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """One stage of every kind: as `summarise` has it, the last stands for all."""
        found = {
            (stage.num_layers, dense_layers_of(self.model, stage), stage.is_first,
             stage.is_last): index
            for index, stage in enumerate(self.stages)
        }  # fmt: skip
        return tuple(found.values())

    @cached_property
    def sizes(self) -> tuple[tuple[int, int, bool, bool], ...]:
        """Blocks of every stage, of them those without experts, and whether it has the model's
        first and last part.
        """
        return tuple(
            (stage.num_layers, dense_layers_of(self.model, stage), stage.is_first, stage.is_last)
            for stage in self.stages
        )

    @cached_property
    def whole(self) -> Units:
        """The whole model."""
        return self._units(self.kinds)

    @cached_property
    def first(self) -> Units:
        """The first part."""
        return self._units(self.kinds[:1])

    @cached_property
    def probes(self) -> tuple[Probe, ...]:
        """The first, the last and the one before: with a pipeline's ends it has been decided."""
        last = self.chain.num_stages - 1
        return tuple(self._probe(stage) for stage in sorted({0, max(0, last - 1), last}))

    def _probe(self, stage: int) -> Probe:
        chunks = range(self.chain.num_chunks)
        own = [self.kinds[self.chain.part(stage, chunk)] for chunk in chunks]
        return Probe(
            stage=stage, own=self._units(own), before=self._units(self.kinds[:stage]),
            own_but_last=self._units(own[:-1]), last=self._units(own[-1:]),
        )  # fmt: skip

    def _units(self, parts: Iterable[int]) -> Units:
        blocks = dense = first = last = 0
        for kind in parts:
            layers, plain, is_first, is_last = self.piece_kinds[kind]
            blocks, dense = blocks + layers - plain, dense + plain
            first, last = first + is_first, last + is_last
        return blocks, dense, first, last


class Cuts:
    """Cuts of one run's model; equal ones are one object."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._known: dict[object, Cut] = {}
        self._shares: dict[object, Shares] = {}

    def of(self, chain: Chain, parts: Parts) -> Cut:
        """As `plan_stages` splits the model, by the time of its parts."""
        count, by_hand = chain.num_parts, self.run.parallelism.layers_per_stage
        shares = None
        if by_hand is None and count > 1:
            shares = self._split(count, parts)
        # One chain object stands for all of its kind; the other two splits have one outcome.
        key = (id(chain), shares)
        cut = self._known.get(key)
        if cut is None:
            blocks = by_hand or (self.run.model.num_layers,)
            counts = blocks if shares is None else shares.counts(count)
            bounds = list(pairwise(accumulate(counts, initial=0)))
            cut = self._known[key] = _cut(self.run.model, chain, bounds)
        return cut

    def _split(self, count: int, parts: Parts) -> Shares:
        costs = parts.block.total_s, parts.embedding.total_s, parts.head.total_s
        key = (count, costs)
        shares = self._shares.get(key)
        if shares is None:
            shares = self._shares[key] = split_evenly(self.run.model.num_layers, count, *costs)
        return shares


def _cut(model: Model, chain: Chain, bounds: Sequence[tuple[int, int]]) -> Cut:
    indices: dict[object, int] = {}
    pieces: list[Stage] = []
    kinds: list[int] = []
    last = chain.num_parts - 1
    for part, (first, end) in enumerate(bounds):
        kind = (end - first, count_dense_layers(model, first, end), part == 0, part == last)
        if kind not in indices:
            indices[kind] = len(pieces)
            pieces.append(
                Stage(
                    stage=0, first_layer=first, end_layer=end, parameters=0,
                    is_first=part == 0, is_last=part == last,
                )
            )  # fmt: skip
        kinds.append(indices[kind])
    return Cut(
        model=model, chain=chain, bounds=tuple(bounds), pieces=tuple(pieces), kinds=tuple(kinds)
    )
