"""The fastest layouts that fit, out of all legal ones: best first, nothing lost, always the same.

A layout is decided in steps: degrees, microbatch, recomputation, stages, schedule and chunks,
sharding, rank order. After each step a bound says how fast anything below it can be at best. The
most promising is taken further first: only then its memory is judged, and what no later step can
make fit is dropped. What is left when enough layouts are known exactly cannot be faster. Only what
survives is simulated, by the functions that `launch plan` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any

from launcher.plan.collectives import Links
from launcher.plan.search_blocks import Blocks
from launcher.plan.search_choice import Choice
from launcher.plan.search_cost import Coster, has_late_weights
from launcher.plan.search_floors import Floors
from launcher.plan.search_legality import Legality
from launcher.plan.search_memory import Memory, Sharding
from launcher.plan.search_nodes import (
    Block,
    Bounded,
    Counts,
    Family,
    Node,
    Ordered,
    Pipeline,
    Place,
    Ranked,
    Ranking,
    Recomputed,
    Roomy,
    Scheduled,
    Sized,
)
from launcher.plan.search_rooms import Rooms
from launcher.plan.search_sharded import pieces_of
from launcher.plan.search_space import Space
from launcher.plan.search_stages import Stages, choice_in
from launcher.plan.shared_cores import busy_share

SLACK = 1 - 1e-9
"""Bounds and simulations add up the same numbers in different orders."""


def rank_layouts(space: Space, limit: int, coster: Coster | None = None) -> Ranking:
    """The `limit` fastest kinds of layouts that fit, by predicted tokens/s; ties as `Choice.tie`
    says. Searches of one run may share what they have learned of its costs.
    """
    return Search(space, coster or Coster(space.run, space.devices)).rank(limit)


class Search:
    """The queue of one search, and what it has learned of the rules."""

    def __init__(self, space: Space, coster: Coster) -> None:
        self.space, self.coster = space, coster
        self.memory, self.floors = Memory(coster, space.sharding), Floors(coster)
        self.counts = Counts()
        self.rules = Legality(space.run, self.counts)
        self.blocks = Blocks(space, self.memory, self.rules, self.counts)
        self.rooms = Rooms(space, self.memory, self.rules, self.counts)
        self._queue: list[tuple[float, bool, tuple[object, ...], int, Any]] = []
        self._num_pushed = 0
        self._places: dict[object, list[Place]] = {}
        self._alike: dict[object, list[Links]] = {}
        self._orders: dict[tuple[bool, ...], list[tuple[str, ...]]] = {}
        self._kinds: set[object] = set()
        # Bounds are of busy cores; processes that take turns are at most that much quicker, so what
        # is known exactly stands in the queue as if cores were busy.
        self._share = busy_share(space.run.hardware)
        self._steps: dict[type, Callable[[Any, float], None]] = {
            Family: self._expand_family, Block: self._expand_block, Sized: self._expand_sized,
            Recomputed: self._expand_recomputed, Stages: self._expand_stages,
            Scheduled: self._expand_scheduled, Pipeline: self._expand_pipeline,
            Ordered: self._expand_ordered, Choice: self._simulate,
        }  # fmt: skip

    def rank(self, limit: int) -> Ranking:
        """Take the most promising further until enough are known exactly."""
        for family in self.blocks.families():
            self._push(self.floors.family_s(family.mesh), family)
        best: list[Ranked] = []
        while self._queue and len(best) < limit:
            bound, is_known, _, _, node = heappop(self._queue)
            if not is_known:
                self._steps[type(node)](node, bound)
            elif node.kind not in self._kinds:
                self._kinds.add(node.kind)
                best.append(Ranked(choice=node, step_s=bound * self._share * _samples(node)))
        self.counts.too_slow = len(self._queue)
        return Ranking(best=tuple(best), counts=self.counts)

    def _push(
        self, seconds: float, node: Node, known: bool = False, tie: tuple[object, ...] = ()
    ) -> None:
        """`seconds` per sample; of equal ones, those that are not known exactly go first."""
        self.counts.examined += not known
        bound = seconds / self._share if known else seconds * SLACK
        self._num_pushed += 1
        heappush(self._queue, (bound, known, tie, self._num_pushed, node))

    # 1. Degrees that cut a block; microbatch and recomputation, as far as memory allows.
    def _expand_family(self, node: Family, bound: float) -> None:
        for block in self.blocks.members(node):
            end_s = min([self.floors.end_s(*sizes) for sizes in block.batches.items()])
            self._push(max(bound, self.floors.block_s(block.mesh) + end_s), block)

    def _expand_block(self, node: Block, bound: float) -> None:
        """Larger microbatches first: what they take says what smaller ones take at least."""
        for sized in reversed(self.blocks.sizes(node)):
            seconds = self.floors.size_s(node.mesh, sized.mesh.micro, sized.batches)
            self._push(max(bound, seconds), sized)

    def _expand_sized(self, node: Sized, bound: float) -> None:
        """The ways to recompute, once its own times say that it is the most promising."""
        seconds = self.floors.multiple_s(node.block.mesh, node.mesh.micro, node.batches)
        if seconds * SLACK <= bound:
            seconds = self.floors.micro_s(node.block.mesh, node.mesh, node.batches)
        if seconds * SLACK > bound:
            self._push(seconds, node)
        elif ways := self.blocks.ways(node):
            self._push_recomputed(Recomputed(*ways[0], tuple(ways[1:])), bound)

    def _push_recomputed(self, node: Recomputed, bound: float) -> None:
        """With a bound of its stages, and of those that only fit with more recomputation: these
        are not quicker than the same without.
        """
        every = [*node.stages, *[one for _, those in node.later for one in those]]
        batches = {one[1:4] for one in every}
        self._push(max(bound, self.floors.batches_s(node.mesh, batches)), node)

    def _expand_recomputed(self, node: Recomputed, bound: float) -> None:
        """Stages, and the same with more recomputation, which never is faster."""
        for stages in node.stages:
            if allowed := self.rooms.shardings(stages):
                self._push(max(bound, self._least_s(stages, allowed)), stages)
        if node.later:
            (mesh, those), *later = node.later
            self._push_recomputed(Recomputed(mesh, those, tuple(later)), bound)

    def _expand_stages(self, node: Stages, bound: float) -> None:
        """What may have room."""
        roomy = self.rooms.of_stages(node)
        if roomy.shardings:
            self._expand_roomy(roomy, bound)

    def _least_s(self, stages: Stages, shardings: Sequence[Sharding]) -> float:
        """With the passes of all microbatches and the sharding that costs least."""
        passes_s = self.floors.passes_s(stages.mesh, [stages[1:4]])
        return self.floors.least_s(stages, shardings, passes_s)

    # 2. Schedule and chunks, whatever the sharding.
    def _expand_roomy(self, node: Roomy, bound: float) -> None:
        stages, shardings, _ = node
        pipelines = sorted(self._pipelines(node))
        seconds = max(bound, self.floors.least_s(stages, shardings, pipelines[0].seconds))
        self._push(seconds, Scheduled(stages, shardings, pipelines, {}))

    def _pipelines(self, node: Roomy) -> Iterator[Bounded]:
        """Each with what it takes at least, on the nearest links."""
        stages, floors = node.stages, self.floors
        p2p_s, nearest = floors.quickest_p2p_s(stages), self.coster.nearest(stages.mesh)
        times = {late: floors.times(stages, late, nearest, p2p_s) for late in (False, True)}
        for position, plan, cut, roomy in node.plans:
            seconds = floors.pipeline_s(stages, plan.name, plan.late, cut, times[plan.late])
            yield Bounded(seconds, position, plan.name, plan.vpp, cut, roomy)

    # 3. Sharding, with the first schedule; each brings the next one when it is taken further.
    def _expand_scheduled(self, node: Scheduled, bound: float) -> None:
        """Push every sharding, on the quickest links first."""
        for sharding in node.shardings:
            floor = self.floors.sharding_s(node.stages, sharding)
            self._push_pipeline(Pipeline(node, sharding, [floor], None, 0), bound)

    def _with_waits(self, node: Scheduled, sharding: Sharding) -> Scheduled:
        """With what every part waits for its weights, in the schedules that may have them."""
        (stages, _, pipelines, _, _), floors = node, self.floors
        allowed = [one for one in pipelines if self.rooms.allow(stages, sharding, one)]
        pieces, p2p_s = pieces_of([one.cut for one in allowed]), floors.quickest_p2p_s(stages)
        found = []
        for one in allowed:
            late = has_late_weights(one.name)
            times = floors.sharded_times(stages, sharding, late, None, p2p_s, pieces)
            seconds = floors.pipeline_s(stages, one.name, late, one.cut, times)
            found.append(one._replace(seconds=seconds))
        return Scheduled(stages, [sharding], sorted(found), {}, pieces)

    def _expand_pipeline(self, node: Pipeline, bound: float) -> None:
        """Push its orders of ranks and the next pipeline."""
        stages, _, pipelines, _, _ = node.scheduled
        if node.places is None:
            if node.sharding[1] == 3 and stages.pp > 1 and not node.scheduled.sharded:
                waiting = self._with_waits(node.scheduled, node.sharding)
                self._push_pipeline(node._replace(scheduled=waiting, rank=0), bound)
                return
            floors = self.floors.together_s(stages, node.sharding, self._together(stages))
            self._push_pipeline(node._replace(floors=floors, places=[]), bound)
            return
        if not node.places:
            places = self._places_of(stages)
            floors = [self.floors.placed_s(stages, node.sharding, one.links) for one in places]
            self._push_pipeline(node._replace(floors=floors, places=places), bound)
            return
        one = pipelines[node.rank]
        self._push_pipeline(Pipeline(*node[:4], node.rank + 1), 0.0)
        choice = choice_in(stages, node.sharding, one.name, one.vpp)
        if choice.kind in self._kinds:
            return
        ordered = self._ordered_s(node, node.places, one)
        self._push_ordered(Ordered(choice, sorted(ordered), False), bound)

    def _push_pipeline(self, node: Pipeline, bound: float) -> None:
        """The schedule of this rank, or the next one that may have room."""
        stages, _, pipelines, _, _ = node.scheduled
        for rank in range(node.rank, len(pipelines)):
            one = pipelines[rank]
            if not self.rooms.allow(stages, node.sharding, one):
                continue
            if node.sharding in one.roomy:
                least_s = min([floor.after_s(one.seconds) for floor in node.floors])
                self._push(max(bound, least_s), Pipeline(*node[:4], rank))
                return
            self.counts.over_memory += 1

    # 4. Order of ranks; each brings the next one when it is taken further.
    def _ordered_s(
        self, node: Pipeline, places: list[Place], one: Bounded
    ) -> Iterator[tuple[float, int, Place]]:
        (stages, _, _, known, sharded), bounds = node.scheduled, self.floors
        late = has_late_weights(one.name)
        for position, (place, floor) in enumerate(zip(places, node.floors, strict=True)):
            links = place.links
            key = (one.position, position if sharded else place.number)
            if key not in known:
                p2p_s = bounds.p2p_s(stages, links)
                if sharded:
                    times = bounds.sharded_times(stages, node.sharding, late, links, p2p_s, sharded)
                else:
                    times = bounds.times(stages, late, links, p2p_s)
                known[key] = bounds.pipeline_s(stages, one.name, late, one.cut, times)
            yield floor.after_s(known[key]), position, place

    def _places_of(self, stages: Stages) -> list[Place]:
        """One order of those that put every axis on the same links."""
        mesh, pp, dp, _, _ = stages
        degrees = (mesh.tp, mesh.cp, mesh.ep, dp, pp)
        if degrees not in self._places:
            found: dict[Links, tuple[str, ...]] = {}
            for order in self._orders_of(mesh.tp > 1, mesh.cp > 1, dp > 1, pp > 1):
                found.setdefault(self.coster.place(degrees, order), order)
            numbers: dict[object, int] = {}
            self._places[degrees] = [
                Place(order, links, numbers.setdefault(links[:4], len(numbers)))
                for links, order in found.items()
            ]
        return self._places[degrees]

    def _together(self, stages: Stages) -> list[Links]:
        """One order of ranks of those that give tp, ep and the replicas the same links."""
        mesh, pp, dp, _, _ = stages
        key = (mesh.tp, mesh.cp, mesh.ep, dp, pp)
        found = self._alike.get(key)
        if found is None:
            first = 3 if self.space.run.model.tie_embeddings else 4  # a tied table goes over pp
            places = [one.links for one in self._places_of(stages)]
            alike = {(links.tp, links.ep, links[first:]): links for links in places}
            found = self._alike[key] = list(alike.values())
        return found

    def _orders_of(self, *is_long: bool) -> list[tuple[str, ...]]:
        """All that differ, where these axes have more than one rank."""
        if is_long not in self._orders:
            sizes = [2 if one else 1 for one in is_long]
            self._orders[is_long] = list(self.space.orders(*sizes))
        return self._orders[is_long]

    def _push_ordered(self, node: Ordered, bound: float) -> None:
        if node.places:
            self._push(max(bound, node.places[0][0]), node)

    def _expand_ordered(self, node: Ordered, bound: float) -> None:
        if node.choice.kind in self._kinds:
            return
        if not node.fits and not self.memory.fits(node.choice):
            self.counts.over_memory += 1
            return
        (_, _, place), *later = node.places
        self._push_ordered(Ordered(node.choice, later, True), 0.0)
        self._simulate(replace(node.choice, order=place.order), bound)

    def _simulate(self, choice: Choice, bound: float) -> None:
        """Know it exactly, if it is legal and no walk of an alike one has shown it to be slow."""
        if choice.kind in self._kinds:
            return
        seconds = self.coster.shortest_s(choice) / _samples(choice)
        if seconds * SLACK > bound:
            self._push(seconds, choice, tie=choice.tie)
            return
        if not self.rules.allow_whole(choice):
            self.counts.illegal += 1
            return
        self.counts.simulated += 1
        self._push(self.coster.exact_s(choice) / _samples(choice), choice, True, choice.tie)


def _samples(choice: Choice) -> int:
    """Of one step."""
    return choice.micro_batch_size * choice.num_microbatches * choice.dp
