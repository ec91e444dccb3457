"""The first steps of a search: degrees that cut a block, microbatches, what may fit at all."""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

from launcher.plan.search_cost import Mesh
from launcher.plan.search_legality import Legality
from launcher.plan.search_memory import Memory, Sharding
from launcher.plan.search_nodes import Block, Counts, Sized
from launcher.plan.search_space import Space
from launcher.plan.search_stages import Stages

Way = tuple[Mesh, tuple[Stages, ...]]
"""To recompute, with the stages that may fit."""


class Blocks:
    """Of one search."""

    def __init__(self, space: Space, memory: Memory, rules: Legality, counts: Counts) -> None:
        self.space, self.memory, self.rules, self.counts = space, memory, rules, counts
        self._batches_of: dict[int, list[tuple[int, int]]] = {}
        self._fitting: dict[object, tuple[int, tuple[Sharding, ...]]] = {}

    def every(self) -> Iterator[Block]:
        """Degrees that cut a block, as far as rules allow them."""
        space = self.space
        for tp in space.tps:
            for cp in space.cps:
                for ep in space.eps:
                    batches = self._batches(tp, cp, ep)
                    all_sizes = lcm(*batches)
                    for split in space.sequence_parallels if batches else ():
                        if self.rules.allow(tp=tp, cp=cp, ep=ep, sequence_parallel=split):
                            mesh = Mesh(tp, cp, ep, split, all_sizes, space.recomputes[0])
                            yield Block(mesh, batches)

    def _batches(self, tp: int, cp: int, ep: int) -> dict[int, list[tuple[int, int, int]]]:
        """Of every microbatch (pp, dp, number of microbatches) that use all devices."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for pp in self.space.pps:
            dp, rest = divmod(self.space.devices, tp * cp * pp)
            if rest or self.space.dp not in (None, dp) or dp * cp % ep:
                continue
            if self._has_room(Mesh(tp, cp, ep, False, 1, self.space.recomputes[0]), pp, dp):
                if dp not in self._batches_of:
                    self._batches_of[dp] = list(self.space.batches(dp))
                for micro, count in self._batches_of[dp]:
                    found.setdefault(micro, []).append((pp, dp, count))
        return found

    def _has_room(self, mesh: Mesh, pp: int, dp: int) -> bool:
        """For state alone: whatever the microbatch and its recomputation add, it is not less."""
        shardings = self.space.sharding
        states, most = self.memory.states(mesh, pp, dp), self.memory.most_state_bytes
        if any(states[one] <= most for one in shardings):
            return True
        self.counts.examined += len(shardings)
        self.counts.over_memory += len(shardings)
        return False

    def sizes(self, block: Block) -> Iterator[Sized]:
        """Its microbatches."""
        for micro in sorted(block.batches):
            yield Sized(block, block.mesh._replace(micro=micro), block.batches[micro])

    def ways(self, sized: Sized) -> list[Way]:
        """The ways to recompute, quickest first, with what may fit."""
        found = []
        for mode in self.space.recomputes:
            mesh = sized.mesh._replace(recompute=mode)
            stages = []
            for pp, dp, count in sized.batches:
                left = self._may_fit(sized, mesh, pp, dp)
                if left:
                    stages.append(Stages(mesh, pp, dp, count, left))
            if stages:
                found.append((mesh, tuple(stages)))
        return found

    def _may_fit(self, sized: Sized, mesh: Mesh, pp: int, dp: int) -> tuple[Sharding, ...]:
        """Larger microbatches only take more: what was over with a smaller one stays out."""
        shardings, key = self.space.sharding, (sized.block.mesh, pp, mesh.recompute)
        micro, before = self._fitting.get(key, (0, shardings))
        if micro <= mesh.micro:
            shardings = before
        if not shardings:
            return ()
        states, room = self.memory.states(mesh, pp, dp), self.memory.room(mesh, pp)
        left = tuple([one for one in shardings if states[one] <= room])
        self.counts.examined += len(shardings)
        self.counts.over_memory += len(shardings) - len(left)
        if micro <= mesh.micro:
            self._fitting[key] = mesh.micro, left
        return left
