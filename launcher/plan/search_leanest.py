"""Which layout of a search takes the least memory, whether it fits or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush

from launcher.plan.search import Search
from launcher.plan.search_choice import Choice
from launcher.plan.search_cost import Coster, Mesh
from launcher.plan.search_memory import NO_LIMIT
from launcher.plan.search_nodes import Sized
from launcher.plan.search_space import Space
from launcher.plan.search_stages import Stages, choice_in


def leanest_of(space: Space) -> Choice | None:
    """By least bytes first: what is left cannot take less than the best that is known."""
    search, best = Search(space, Coster(space.run, space.devices)), None
    search.memory.usable_bytes = NO_LIMIT
    for least, partial in _Leanest(search).in_order():
        if best is not None and least > best[0]:
            break
        for choice in _whole(search, partial):
            found = (search.memory.peak_bytes(choice), choice.tie, choice)
            if best is not None and best[:2] <= found[:2]:
                continue
            if search.rules.allow_whole(choice):
                best = found
    return best[2] if best else None


def _whole(search: Search, stages: Stages) -> Iterator[Choice]:
    """Layouts of one sharding, in one order of ranks: no other changes their memory."""
    (engine, stage, offload), *_ = stages.shardings
    for name, vpp in search.space.pipelines(stages.pp, stages.num_microbatches):
        choice = choice_in(stages, (engine, stage, offload), name, vpp)
        if search.space.order is not None:
            choice = replace(choice, order=search.space.order)
        if search.rules.allow_pipeline(choice):
            yield choice


class _Leanest:
    """Layouts up to their sharding, each with a bound of its memory, least first."""

    def __init__(self, search: Search) -> None:
        self._blocks, self._memory = search.blocks, search.memory
        self._queue: list[tuple[int, int, Sized | Stages]] = []
        self._num_pushed = 0
        self._larger: dict[Mesh, list[Sized]] = {}

    def in_order(self) -> Iterator[tuple[int, Stages]]:
        """Every one, unless nobody asks for more."""
        for block in self._blocks.every():
            for sized in self._smallest(list(self._blocks.sizes(block))):
                self._push(self._memory.least_state(sized.mesh, sized.batches), sized)
        while self._queue:
            least, _, node = heappop(self._queue)
            if isinstance(node, Stages):
                yield least, node
            else:
                self._expand(node)

    def _push(self, least: int, node: Sized | Stages) -> None:
        self._num_pushed += 1
        heappush(self._queue, (least, self._num_pushed, node))

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
        """With every way to recompute and every sharding by itself; then larger microbatches."""
        found = [
            (self._memory.least_bytes(mesh, stages.pp, stages.dp, one), stages, one)
            for mesh, those in self._blocks.ways(sized)
            for stages in those
            for one in stages.shardings
        ]
        for least, stages, one in found:
            self._push(least, stages._replace(shardings=(one,)))
        for larger in self._larger.pop(sized.mesh, ()):
            self._push(min([least for least, _, _ in found]), larger)
