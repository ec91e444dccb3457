"""The first steps of a search: degrees that cut a block, microbatches, what may fit at all."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, lcm

from launcher.plan.search_jobs import Mesh
from launcher.plan.search_legality import Legality
from launcher.plan.search_memory import Memory, Sharding
from launcher.plan.search_nodes import Block, Counts, Family, Sized
from launcher.plan.search_space import Space
from launcher.plan.search_stages import Stages

Way = tuple[Mesh, tuple[Stages, ...]]
"""To recompute, with the stages that may fit."""


class Blocks:
    """Of one search."""

    def __init__(self, space: Space, memory: Memory, rules: Legality, counts: Counts) -> None:
        self.space, self.memory, self.rules, self.counts = space, memory, rules, counts
        self._sizes: dict[int, list[tuple[int, int]]] = {}
        self._batches_of: dict[object, dict[int, list[tuple[int, int, int]]]] = {}
        self._fitting: dict[object, tuple[int, tuple[Sharding, ...]]] = {}

    def every(self) -> Iterator[Block]:
        """Degrees that cut a block, as far as rules allow them."""
        for tp in self.space.tps:
            for cp in self.space.cps:
                for ep in self.space.eps:
                    for split in self.space.sequence_parallels:
                        yield from self._block(tp, cp, ep, split)

    def families(self) -> Iterator[Family]:
        """Of all degrees, whether rules allow them or not."""
        space = self.space
        for tp in space.tps:
            samples = self._samples(tp)
            for ep in space.eps if samples else ():
                for split in space.sequence_parallels:
                    yield Family(Mesh(tp, 1, ep, split, samples, space.recomputes[0]))

    def _samples(self, tp: int) -> int:
        """Of one rank: a multiple of those of every microbatch, cut over any cp; 0: there is none.
        Microbatches divide the samples of a replica.
        """
        found = set()
        for cp in self.space.cps:
            for pp in self.space.pps:
                dp, rest = divmod(self.space.devices, tp * cp * pp)
                if not rest and (sizes := self._sizes_of(dp)):
                    largest = sizes[-1][0]  # a multiple of the others
                    found.add(largest // gcd(largest, cp))
        return lcm(*found) if found else 0

    def members(self, family: Family) -> Iterator[Block]:
        """Its blocks, as far as rules allow them."""
        tp, _, ep, split, _, _ = family.mesh
        for cp in self.space.cps:
            yield from self._block(tp, cp, ep, split)

    def _block(self, tp: int, cp: int, ep: int, split: bool) -> Iterator[Block]:
        batches = self._batches(tp, cp, ep)
        if batches and self.rules.allow(tp=tp, cp=cp, ep=ep, sequence_parallel=split):
            mesh = Mesh(tp, cp, ep, split, lcm(*batches), self.space.recomputes[0])
            yield Block(mesh, batches)

    def _batches(self, tp: int, cp: int, ep: int) -> dict[int, list[tuple[int, int, int]]]:
        """Of every microbatch (pp, dp, number of microbatches) that use all devices."""
        known = self._batches_of.get((tp, cp, ep))
        if known is not None:
            return known
        found = self._batches_of[tp, cp, ep] = {}
        for pp in self.space.pps:
            dp, rest = divmod(self.space.devices, tp * cp * pp)
            if rest or self.space.dp not in (None, dp) or dp * cp % ep:
                continue
            if self._has_room(Mesh(tp, cp, ep, False, 1, self.space.recomputes[0]), pp, dp):
                for micro, count in self._sizes_of(dp):
                    found.setdefault(micro, []).append((pp, dp, count))
        return found

    def _sizes_of(self, dp: int) -> list[tuple[int, int]]:
        """(microbatch, number of microbatches)."""
        if dp not in self._sizes:
            self._sizes[dp] = list(self.space.batches(dp))
        return self._sizes[dp]

    def _has_room(self, mesh: Mesh, pp: int, dp: int) -> bool:
        """For state alone: whatever the microbatch and its recomputation add, it is not less."""
        shardings = self.space.sharding
        states, most = self.memory.states(mesh, pp, dp), self.memory.most_state_bytes
        if any(states[one] <= most for one in shardings):
            return True
        self.counts.examined += len(shardings)
        self.counts.over_memory += len(shardings)
        return False

    def sizes(self, block: Block) -> list[Sized]:
        """Its microbatches, the smallest first."""
        tp, cp, ep, split, _, recompute = block.mesh
        return [
            Sized(block, Mesh(tp, cp, ep, split, micro, recompute), block.batches[micro])
            for micro in sorted(block.batches)
        ]

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
