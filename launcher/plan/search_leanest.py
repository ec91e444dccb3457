"""Which layout of a search takes the least memory, whether it fits or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import NamedTuple

from launcher.plan.search import Search
from launcher.plan.search_choice import Choice
from launcher.plan.search_cost import Coster
from launcher.plan.search_jobs import Mesh
from launcher.plan.search_memory import NO_LIMIT, Crowd, Memory, Sharding
from launcher.plan.search_nodes import Counts, Sized
from launcher.plan.search_space import Space
from launcher.plan.search_stages import Stages, choice_in


class Leanest(NamedTuple):
    """The layout that takes least, or the first one found that takes little enough."""

    choice: Choice | None
    """None where none is legal, or where none takes at most what was asked for."""
    peak_bytes: int
    state_bytes: int
    """No layout takes less than this, however few its tokens; where none took little enough."""
    counts: Counts


def leanest_of(space: Space, enough: int = 0, most: int = NO_LIMIT) -> Leanest:
    """By least bytes first: what is left cannot take less than the best that is known.

    The first that takes no more than `enough` bytes will do; one that takes more than `most` is
    none.
    """
    search = Search(space, Coster(space.run, space.devices))
    best: tuple[int, tuple[object, ...], Choice] | None = None
    search.memory.usable_bytes = most
    partials = _Partials(search, enough)
    for least, partial in partials.in_order():
        if least > (best[0] if best else most):
            break
        for choice in _whole(search, partial, best[0] if best else most):
            known = best[0] if best else most
            found = (search.memory.peak_bytes(choice, known), choice.tie, choice)
            if found[0] > most or (best is not None and best[:2] <= found[:2]):
                continue
            if search.rules.allow_whole(choice):
                best = found
        if best is not None and best[0] <= enough:
            break
    return Leanest(
        choice=best[2] if best else None,
        peak_bytes=best[0] if best else most,
        state_bytes=partials.state_bytes,
        counts=search.counts,
    )


def may_fit(space: Space) -> bool:
    """Whether the devices together have room for the model's state."""
    memory = Memory(Coster(space.run, space.devices), space.sharding)
    return memory.average_bytes() <= memory.usable_bytes


def _whole(search: Search, stages: Stages, most: int) -> Iterator[Choice]:
    """Layouts of one sharding, in one order of ranks: no other changes their memory. Those whose
    state alone is more than `most`, or what the first stage keeps, are left out.
    """
    (mesh, pp, dp, count, (sharding,)), memory = stages, search.memory
    for name, vpp in search.space.pipelines(pp, count):
        if pp > 1:
            cut = search.coster.cut(mesh, search.coster.chain(name, pp, vpp))
            if memory.split_bytes(mesh, pp, dp, sharding, cut) > most:
                continue
            peak = memory.first_peak(name, pp, vpp, count) or 0
            first = Crowd(cut.sizes[0], peak / cut.chain.num_chunks)
            if memory.bytes_of(mesh, pp, dp, sharding, first) > most:
                continue
        choice = choice_in(stages, sharding, name, vpp)
        if search.space.order is not None:
            choice = replace(choice, order=search.space.order)
        if search.rules.allow_pipeline(choice):
            yield choice


class _Row(NamedTuple):
    """Layouts up to their stages, with one sharding after the other, the least state first."""

    stages: Stages
    shardings: Sequence[Sharding]
    rank: int
    """Of the sharding at hand."""


class _Partials:
    """Layouts up to their sharding, each with a bound of its memory, least first; but before all
    others, as they are found, those that may take no more than `enough`.
    """

    def __init__(self, search: Search, enough: int) -> None:
        self._enough = enough
        self._space, self._blocks, self._memory = search.space, search.blocks, search.memory
        self._counts = search.counts
        self._queue: list[tuple[bool, int, int, Sized | _Row]] = []
        self._num_pushed = 0
        self._larger: dict[Mesh, list[Sized]] = {}
        self._in_order: dict[int, Sequence[Sharding]] = {}
        self._chunks: dict[tuple[int, int], int] = {}
        self.state_bytes = NO_LIMIT

    def in_order(self) -> Iterator[tuple[int, Stages]]:
        """Every one, unless nobody asks for more."""
        for block in self._blocks.every():
            for sized in self._smallest(list(self._blocks.sizes(block))):
                state = self._memory.least_state(sized.mesh, sized.batches)
                self.state_bytes = min(self.state_bytes, state)
                self._push(state, sized)
            yield from self._taken(has_late=False)
        yield from self._taken(has_late=True)

    def _taken(self, has_late: bool) -> Iterator[tuple[int, Stages]]:
        while self._queue and (has_late or not self._queue[0][0]):
            _, least, _, node = heappop(self._queue)
            if isinstance(node, Sized):
                self._expand(node)
                continue
            yield least, node.stages._replace(shardings=(node.shardings[node.rank],))
            if node.rank + 1 < len(node.shardings):
                self._push_row(node._replace(rank=node.rank + 1))

    def _push(self, least: int, node: Sized | _Row) -> None:
        """If it may fit."""
        self._counts.examined += 1
        if least > self._memory.usable_bytes:
            self._counts.over_memory += 1
            return
        self._num_pushed += 1
        heappush(self._queue, (least > self._enough, least, self._num_pushed, node))

    def _smallest(self, sizes: Sequence[Sized]) -> Iterator[Sized]:
        """Those that wait for no smaller one: with the same degrees a multiple of a microbatch
        takes no less than it.
        """
        degrees = [{batch[:2] for batch in sized.batches} for sized in sizes]
        for index, sized in enumerate(sizes):
            for before in range(index - 1, -1, -1):
                smaller = sizes[before]
                if sized.mesh.micro % smaller.mesh.micro == 0 and degrees[index] <= degrees[before]:
                    self._larger.setdefault(smaller.mesh, []).append(sized)
                    break
            else:
                yield sized

    def _expand(self, sized: Sized) -> None:
        """With every way to recompute and all stages; then larger microbatches."""
        found = []
        for mode in self._space.recomputes:
            mesh = sized.mesh._replace(recompute=mode)
            for pp, dp, count in sized.batches:
                shardings = self._by_state(mesh, pp, dp)
                row = _Row(Stages(mesh, pp, dp, count, ()), shardings, 0)
                found.append(self._push_row(row))
        for larger in self._larger.pop(sized.mesh, ()):
            self._push(min(found), larger)

    def _push_row(self, row: _Row) -> int:
        mesh, pp, dp, count, _ = row.stages
        sharding = row.shardings[row.rank]
        least = self._memory.least_bytes(mesh, pp, dp, sharding)
        if chunks := self._first_chunks(pp, count):
            least = max(least, self._memory.first_bytes(mesh, pp, dp, sharding, chunks))
        self._push(least, row)
        return least

    def _first_chunks(self, pp: int, count: int) -> int:
        """Chunks of microbatches, each of a block at least, that the first of several stages keeps
        in every schedule; 0: not known.
        """
        key = (pp, count)
        if key not in self._chunks:
            degrees, model = self._space.run.parallelism, self._space.run.model
            # Every part has a block where there are enough of them and nobody deals them out.
            is_known = degrees.layers_per_stage is None and 1 < pp <= model.num_layers
            peaks = [
                self._memory.first_peak(name, pp, vpp, count) or 0
                for name, vpp in (self._space.pipelines(pp, count) if is_known else ())
            ]
            self._chunks[key] = min(peaks, default=0)
        return self._chunks[key]

    def _by_state(self, mesh: Mesh, pp: int, dp: int) -> Sequence[Sharding]:
        states = self._memory.states(mesh, pp, dp)
        found = self._in_order.get(id(states))  # states are kept: a number is one table's alone
        if found is None:
            found = self._in_order[id(states)] = sorted(states, key=lambda one: states[one])
        return found
