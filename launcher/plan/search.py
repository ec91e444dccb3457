"""The fastest layouts that fit, out of all legal ones: best first, nothing lost, always the same.

A layout is decided in steps: degrees and microbatch, recomputation, stages, sharding, schedule and
chunks, rank order. Memory is judged first: what no later step can make fit is never timed. Of the
rest a bound says after each step how fast anything below it can be at best. The most promising is
taken further first, and what is left when enough layouts are known exactly cannot be faster. Only
what survives is simulated, by the functions that `launch plan` uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import NamedTuple

from launcher.config.rules import obeys_rules
from launcher.config.schema import is_schedule_file
from launcher.plan.collectives import Links
from launcher.plan.search_choice import ORDER, PLAIN, Choice, changed, run_of
from launcher.plan.search_cost import Coster, Mesh
from launcher.plan.search_floors import Floor, Floors
from launcher.plan.search_memory import Memory, Sharding
from launcher.plan.search_space import Space

NO_LIMIT = 2**80
"""Bytes that everything fits into."""

SLACK = 1 - 1e-9
"""Bounds and simulations add up the same numbers in different orders."""


@dataclass
class Counts:
    """What became of the layouts; a decided step of many layouts counts as one."""

    examined: int = 0
    """Partial and whole layouts that were given a bound of memory or time."""
    over_memory: int = 0
    """Of these, dropped because nothing below them fits."""
    illegal: int = 0
    """Combinations that a rule refuses."""
    simulated: int = 0
    """Whole layouts whose schedule was walked."""
    too_slow: int = 0
    """Never taken further: even their bound is behind the last layout that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A layout and how long a step of it takes."""

    choice: Choice
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The best layout of each of the best kinds (`Choice.kind`), fastest first."""

    best: tuple[Ranked, ...]
    counts: Counts


class Stages(NamedTuple):
    """Degrees, batch and recomputation are decided; these shardings may fit."""

    mesh: Mesh
    pp: int
    dp: int
    num_microbatches: int
    shardings: tuple[Sharding, ...]


class _Recomputed(NamedTuple):
    """First step: the layouts of one way to recompute, and the ways that recompute more."""

    mesh: Mesh
    stages: tuple[Stages, ...]
    later: tuple[tuple[Mesh, tuple[Stages, ...]], ...]


class _Sharded(NamedTuple):
    """Third step."""

    stages: Stages
    sharding: Sharding
    floor: Floor


class _Pipeline(NamedTuple):
    """Fourth step; what is missing is the order of ranks."""

    sharded: _Sharded
    choice: Choice
    rank: int
    """Among the pipelines of these stages, by their bounds."""


_Node = _Recomputed | Stages | _Sharded | _Pipeline | Choice


def rank_layouts(space: Space, limit: int, coster: Coster | None = None) -> Ranking:
    """The `limit` fastest kinds of layouts that fit, by predicted tokens/s; ties as `Choice.tie`
    says. Searches of one run may share what they have learned of its costs.
    """
    return Search(space, coster or Coster(space.run, space.devices)).rank(limit)


class Search:
    """The queue of one search, and what it has learned of the rules."""

    def __init__(self, space: Space, coster: Coster) -> None:
        self.space, self.coster = space, coster
        self.memory, self.floors = Memory(coster), Floors(coster)
        self.counts = Counts()
        self._queue: list[tuple[float, bool, tuple[object, ...], int, _Node]] = []
        self._num_pushed = 0
        self._allowed: dict[object, bool] = {}
        self._pipelines: dict[object, list[tuple[float, int, Choice]]] = {}
        self._orders: dict[object, tuple[tuple[str, ...], ...]] = {}

    def rank(self, limit: int) -> Ranking:
        """Take the most promising further until enough are known exactly."""
        for first, *later in self.recomputed():
            self._push_recomputed(_Recomputed(*first, tuple(later)), 0.0)
        best: list[Ranked] = []
        kinds: set[object] = set()
        while self._queue and len(best) < limit:
            bound, is_known, _, _, node = heappop(self._queue)
            if isinstance(node, _Recomputed):
                self._expand_recomputed(node, bound)
            elif isinstance(node, Stages):
                self._expand_stages(node, bound)
            elif isinstance(node, _Sharded):
                self._push_pipeline(node, 0, bound)
            elif isinstance(node, _Pipeline):
                self._expand_pipeline(node, bound, node.choice.kind in kinds)
            elif node.kind not in kinds:
                if is_known:
                    kinds.add(node.kind)
                    best.append(Ranked(choice=node, step_s=bound * _samples(node)))
                else:
                    self._simulate(node)
        self.counts.too_slow = len(self._queue)
        return Ranking(best=tuple(best), counts=self.counts)

    def _push(self, seconds: float, node: _Node, known: bool = False) -> None:
        """`seconds` per sample; of equal ones, those that are not known exactly go first."""
        self.counts.examined += not known
        tie = node.tie if isinstance(node, Choice) else ()
        bound = seconds if known else seconds * SLACK
        self._num_pushed += 1
        heappush(self._queue, (bound, known, tie, self._num_pushed, node))

    # 1. Degrees of a block, microbatch and recomputation, as far as memory allows.
    def recomputed(self) -> Iterator[list[tuple[Mesh, tuple[Stages, ...]]]]:
        """Of every mesh and microbatch the ways to recompute, quickest first, with what may fit."""
        space = self.space
        for tp in space.tps:
            for cp in space.cps:
                for ep in space.eps:
                    batches = list(self._batches(tp, cp, ep))
                    for split in space.sequence_parallels if batches else ():
                        if self._is_legal(tp=tp, cp=cp, ep=ep, sequence_parallel=split):
                            yield from self._fitting(Mesh(tp, cp, ep, split, 1, ""), batches)

    def _batches(self, tp: int, cp: int, ep: int) -> Iterator[tuple[int, int, int, int]]:
        """(microbatch, pp, dp, number of microbatches) that use all devices."""
        for pp in self.space.pps:
            dp, rest = divmod(self.space.devices, tp * cp * pp)
            if not rest and self.space.dp in (None, dp) and dp * cp % ep == 0:
                for micro, count in self.space.batches(dp):
                    yield micro, pp, dp, count

    def _fitting(
        self, mesh: Mesh, batches: list[tuple[int, int, int, int]]
    ) -> Iterator[list[tuple[Mesh, tuple[Stages, ...]]]]:
        """Larger microbatches and less recomputation only take more: what is over stays out."""
        modes = self.space.recomputes
        fitting = {(pp, mode): self.space.sharding for _, pp, _, _ in batches for mode in modes}
        for micro in sorted({batch[0] for batch in batches}):
            ways = []
            for mode in modes:
                one = mesh._replace(micro=micro, recompute=mode)
                found = []
                for size, pp, dp, count in batches:
                    if size == micro and fitting[pp, mode]:
                        left = self._may_fit(one, pp, dp, fitting[pp, mode])
                        fitting[pp, mode] = left
                        if left:
                            found.append(Stages(one, pp, dp, count, left))
                if found:
                    ways.append((one, tuple(found)))
            if ways:
                yield ways

    def _may_fit(
        self, mesh: Mesh, pp: int, dp: int, shardings: tuple[Sharding, ...]
    ) -> tuple[Sharding, ...]:
        memory, usable = self.memory, self.memory.usable_bytes
        left = tuple(
            one for one in shardings if memory.least_bytes(mesh, pp, dp, one) <= usable
        )  # fmt: skip
        self.counts.examined += len(shardings)
        self.counts.over_memory += len(shardings) - len(left)
        return left

    def _push_recomputed(self, node: _Recomputed, bound: float) -> None:
        self._push(max(bound, self.floors.mesh_s(node.mesh)), node)

    def _expand_recomputed(self, node: _Recomputed, bound: float) -> None:
        """Stages, and the same with more recomputation, which never is faster."""
        for stages in node.stages:
            self._push(max(bound, self.floors.stages_s(node.mesh, stages.pp, stages.dp)), stages)
        if node.later:
            (mesh, those), *later = node.later
            self._push_recomputed(_Recomputed(mesh, those, tuple(later)), bound)

    def by_least_bytes(self) -> list[tuple[int, Stages]]:
        """Every layout up to its sharding, whether it fits or not, with a bound of its memory."""
        self.memory.usable_bytes = NO_LIMIT
        found = []
        for ways in self.recomputed():
            for mesh, those in ways:
                for stages in those:
                    for one in stages.shardings:
                        least = self.memory.least_bytes(mesh, stages.pp, stages.dp, one)
                        found.append((least, stages._replace(shardings=(one,))))
        return sorted(found, key=lambda entry: entry[0])

    def whole(self, stages: Stages) -> Iterator[Choice]:
        """Legal layouts of one sharding, in one order of ranks: no other changes their memory."""
        (engine, stage, offload), *_ = stages.shardings
        for name, vpp in self.space.pipelines(stages.pp, stages.num_microbatches):
            plain = _choice(stages, name, vpp)
            choice = replace(plain, engine=engine, zero_stage=stage, offload=offload)
            if self.space.order is not None:
                choice = replace(choice, order=self.space.order)
            if self._is_pipeline_legal(choice) and obeys_rules(run_of(self.space.run, choice)):
                yield choice

    # 2. Sharding.
    def _expand_stages(self, node: Stages, bound: float) -> None:
        """Push what a rule allows with some schedule."""
        mesh, pp, dp, count, shardings = node
        for sharding in shardings:
            engine, stage, offload = sharding
            if self._is_legal(engine=engine, zero_stage=stage, offload=offload, pp=pp):
                floor = self.floors.sharding_s(mesh, pp, dp, count, sharding)
                self._push(max(bound, floor.busy_s) + floor.end_s, _Sharded(node, sharding, floor))

    # 3. Schedule and chunks: the first of them; each brings the next one when it is taken further.
    def _push_pipeline(self, sharded: _Sharded, rank: int, bound: float) -> None:
        ranked = self._ranked_pipelines(sharded.stages)
        if rank < len(ranked):
            seconds, _, plain = ranked[rank]
            engine, stage, offload = sharded.sharding
            choice = replace(plain, engine=engine, zero_stage=stage, offload=offload)
            floor = sharded.floor
            seconds = max(bound, max(seconds, floor.busy_s) + floor.end_s)
            self._push(seconds, _Pipeline(sharded, choice, rank))

    def _ranked_pipelines(self, stages: Stages) -> list[tuple[float, int, Choice]]:
        """By their bounds, whatever the sharding."""
        if stages not in self._pipelines:
            self._pipelines[stages] = found = []
            for position, (name, vpp) in enumerate(
                self.space.pipelines(stages.pp, stages.num_microbatches)
            ):
                choice = _choice(stages, name, vpp)
                if any(self._may_hold(choice, one, stages) for one in stages.shardings):
                    found.append((self.floors.pipeline_s(choice), position, choice))
                else:
                    self.counts.over_memory += 1
            found.sort(key=lambda entry: entry[:2])
        return self._pipelines[stages]

    def _may_hold(self, choice: Choice, sharding: Sharding, stages: Stages) -> bool:
        """Whether the first stage may have room for what the schedule keeps alive there."""
        if is_schedule_file(choice.schedule):
            return True
        cut = self.coster.cut(stages.mesh, self.coster.chain(choice))
        least = self.memory.least_bytes_of(
            stages.mesh, stages.dp, sharding, choice.schedule, stages.num_microbatches, cut
        )
        return least <= self.memory.usable_bytes

    def _expand_pipeline(self, node: _Pipeline, bound: float, is_known_kind: bool) -> None:
        """Push every order of it, if it fits, and the next pipeline."""
        sharded, choice, rank = node
        self._push_pipeline(sharded, rank + 1, 0.0)
        if is_known_kind or not self._is_pipeline_legal(choice):
            return
        is_over = not self._may_hold(choice, sharded.sharding, sharded.stages)
        if is_over or not self.memory.fits(choice):
            self.counts.over_memory += 1
            return
        for order in self._orders_of(choice):
            ordered = replace(choice, order=order)
            seconds = self.coster.shortest_s(ordered) / _samples(choice)
            self._push(max(bound, seconds), ordered)

    def _is_pipeline_legal(self, choice: Choice) -> bool:
        return self._is_legal(
            pp=choice.pp, schedule=choice.schedule, vpp=choice.vpp, engine=choice.engine,
            zero_stage=choice.zero_stage, num_microbatches=choice.num_microbatches,
        )  # fmt: skip

    # 4. Order of ranks.
    def _orders_of(self, choice: Choice) -> tuple[tuple[str, ...], ...]:
        """One of those that put every axis on the same links."""
        key = (choice.tp, choice.cp, choice.ep, choice.dp, choice.pp)
        if key not in self._orders:
            found: dict[Links, tuple[str, ...]] = {}
            for order in self.space.orders(choice.tp, choice.cp, choice.dp, choice.pp):
                links = self.coster.links(self.coster.job(replace(choice, order=order)))
                found.setdefault(links, order)
            self._orders[key] = tuple(found.values())
        return self._orders[key]

    def _simulate(self, choice: Choice) -> None:
        """Know it exactly, if it is legal after all."""
        if not obeys_rules(run_of(self.space.run, choice)):
            self.counts.illegal += 1
            return
        self.counts.simulated += 1
        self._push(self.coster.exact_s(choice) / _samples(choice), choice, known=True)

    def _is_legal(self, **values: object) -> bool:
        """Whether no rule refuses these values with all others open."""
        key = tuple(values.items())
        if key not in self._allowed:
            degrees = PLAIN | values
            if is_schedule_file(str(degrees["schedule"])):
                degrees.pop("schedule_lines")
            count = degrees.pop("num_microbatches", None)
            batch = {"micro_batch_size": None, "num_microbatches": count, "global_batch_size": None}
            run = changed(self.space.run, parallelism=degrees, train=batch)
            self._allowed[key] = obeys_rules(run)
            self.counts.illegal += not self._allowed[key]
        return self._allowed[key]


def _choice(stages: Stages, schedule: str, vpp: int) -> Choice:
    """In the plain order of ranks, without sharding."""
    tp, cp, ep, split, micro, recompute = stages.mesh
    return Choice(
        tp=tp, cp=cp, ep=ep, pp=stages.pp, vpp=vpp, schedule=schedule, recompute=recompute,
        engine="deepspeed", zero_stage=0, offload="none", sequence_parallel=split, order=ORDER,
        micro_batch_size=micro, num_microbatches=stages.num_microbatches, dp=stages.dp,
    )  # fmt: skip


def _samples(choice: Choice) -> int:
    """Of one step."""
    return choice.micro_batch_size * choice.num_microbatches * choice.dp
