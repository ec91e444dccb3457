"""What the state of layouts takes at least at the end of a step, whatever is done before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from launcher.plan.collectives import Links, StateTraffic
from launcher.plan.execution import Execution, Job
from launcher.plan.records import Stage
from launcher.plan.search_bounds import least_exposed_s
from launcher.plan.search_choice import ORDER, ORDERS
from launcher.plan.search_cost import Coster
from launcher.plan.search_jobs import Mesh
from launcher.plan.search_memory import Sharding
from launcher.plan.search_sharded import least_traffic
from launcher.plan.search_stages import Stages, choice_in
from launcher.plan.stage_state import copies_s_of
from launcher.plan.step_time import embedding_s, update_s

NEAR_AND_FAR = (("pp", "tp", "cp", "dp"), ORDER)
"""Orders of ranks with stages on one node where that can be, and across nodes."""


Allowed = Callable[[Mesh, int, int], Sequence[Sharding]]
"""Of degrees, with pp and dp: no other sharding is possible."""

_ANY = (0.0, inf)
"""Of no window anything is known."""


class End(NamedTuple):
    """What the state of a step takes at least, in whatever sharding."""

    least_s: float
    """Behind the pipeline."""
    once_s: float
    """The same where its traffic is once per step."""
    each_s: float
    """The same where weights travel with every microbatch."""
    wait_s: float
    """Of some stage, for these; per microbatch."""


class Held(NamedTuple):
    """State of the average stage, with its traffic over some links."""

    execution: Execution
    traffic: StateTraffic
    first: StateTraffic | None
    """Of the model's first end alone, where that is more."""
    update_s: float
    """With what every step ends with."""
    copies_s: float
    embedding_s: float
    """Of tied embeddings, behind all traffic."""


class Ends:
    """Bounds of state alone: they know of no microbatch and no schedule."""

    def __init__(self, coster: Coster, allowed: Allowed) -> None:
        self.coster, self._allowed = coster, allowed
        self.model = coster.run.model
        experts, gpu = self.model.experts, coster.run.hardware.gpu
        self._num_dense = min(self.model.num_layers, experts.num_dense_layers) if experts else 0
        self.overhead_s = gpu.step_overhead_s if gpu else 0.0
        self._ends: dict[object, dict[tuple[int, int], End]] = {}
        self._lightest: dict[object, dict[Sharding, Held]] = {}
        self._states: dict[object, Held] = {}
        self._placed: dict[object, list[Links]] = {}
        self._orders: dict[object, list[tuple[str, ...]]] = {}
        self._averages: dict[int, Stage] = {}

    def ends(self, mesh: Mesh) -> dict[tuple[int, int], End]:
        """What is known of (pp, dp)."""
        key = mesh[:3]
        found = self._ends.get(key)
        if found is None:
            found = self._ends[key] = {}
        return found

    def end_of(self, mesh: Mesh, pp: int, dp: int) -> End:
        """Of all shardings the least; kept in `ends`."""
        once_s = each_s = wait_s = inf
        shardings = self._allowed(mesh, pp, dp)
        for held in self.lightest_of(Stages(mesh, pp, dp, 1, ()), shardings):
            end_s = held.update_s + held.embedding_s
            if held.traffic.per_microbatch:
                each_s, wait_s = min(each_s, end_s), min(wait_s, _least_waits_s(held))
            else:
                once_s = min(once_s, end_s + _least_tail_s(held))
        found = self.ends(mesh)[pp, dp] = End(min(once_s, each_s), once_s, each_s, wait_s)
        return found

    def lightest_of(self, stages: Stages, shardings: Sequence[Sharding]) -> list[Held]:
        """Traffic of the average stage's state over the quickest links of any order of ranks."""
        mesh, pp, dp, _, _ = stages
        # Of dp and cp only the product counts: together they are the replicas, and the nearer of
        # them is as near in some order of ranks as dp alone is in another.
        key = (mesh.tp, mesh.ep, pp, dp * mesh.cp)
        known = self._lightest.get(key)
        if known is None:
            known = self._lightest[key] = {}
        for sharding in shardings:
            if sharding not in known:
                known[sharding] = self._lightest_held(stages, sharding)
        return [known[sharding] for sharding in shardings]

    def _lightest_held(self, stages: Stages, sharding: Sharding) -> Held:
        found = [self.held(stages, sharding, links) for links in self.placings(stages)]
        firsts = [one.first for one in found if one.first]
        execution, _, _, update_s, copies_s, _ = found[0]
        return Held(
            execution, least_traffic([one.traffic for one in found]),
            least_traffic(firsts) if len(firsts) == len(found) else None, update_s, copies_s,
            self._least_embedding_s(stages, sharding),
        )  # fmt: skip

    def _least_embedding_s(self, stages: Stages, sharding: Sharding) -> float:
        mesh, pp, dp, _, _ = stages
        if pp == 1 or not self.model.tie_embeddings:
            return 0.0
        job = self.coster.job(choice_in(stages, sharding, "1f1b", 1))
        degrees, place = (mesh.tp, mesh.cp, mesh.ep, dp, pp), self.coster.place
        return min([embedding_s(job, place(degrees, order)) for order in NEAR_AND_FAR])

    def held(self, stages: Stages, sharding: Sharding, links: Links) -> Held:
        """Of the average stage, in one order of ranks."""
        mesh, pp, dp, _, _ = stages
        # Of dp and cp only the product counts: together they are the replicas.
        over = links[3:] if self.model.tie_embeddings else links[4:]
        key = (mesh.tp, mesh.ep, pp, dp * mesh.cp, sharding, over)
        found = self._states.get(key)
        if found is None:
            job = self.coster.job(choice_in(stages, sharding, "1f1b", 1))
            found = self._states[key] = self._make_held(job, pp, links)
        return found

    def _make_held(self, job: Job, pp: int, links: Links) -> Held:
        state, first, traffic = self.coster.state(job, self._average_stage(pp), links), None, None
        least_s = update_s(job, state)
        # A stage with the first end has no less than that: no message of a block is quicker for it.
        if pp > 1:
            first = self.coster.state(job, _first_end(), links)
            least_s = max(least_s, update_s(job, first))
            if sum(first.traffic[:2]) > sum(state.traffic[:2]):
                traffic = first.traffic
        return Held(
            execution=job.execution, traffic=state.traffic, first=traffic,
            update_s=least_s + self.overhead_s, copies_s=copies_s_of(job, state.parameters),
            embedding_s=embedding_s(job, links),
        )  # fmt: skip

    def num_blocks(self, pp: int) -> int:
        """Some stage has so many at least, of those that have experts where some have none."""
        return -(-(self.model.num_layers - self._num_dense) // pp)

    def _average_stage(self, pp: int) -> Stage:
        """With these blocks alone; one of one stage has all."""
        found = self._averages.get(pp)
        if found is None:
            every, blocks = self.model.num_layers, self.num_blocks(pp)
            found = self._averages[pp] = Stage(
                stage=0, first_layer=0 if pp == 1 else every - blocks, end_layer=every,
                parameters=0, is_first=pp == 1, is_last=pp == 1,
            )  # fmt: skip
        return found

    def placings(self, stages: Stages) -> list[Links]:
        """Of every place that an order of ranks gives to dp x cp, one."""
        mesh, pp, dp, _, _ = stages
        degrees = (mesh.tp, mesh.cp, mesh.ep, dp, pp)
        placings = self._placed.get(degrees)
        if placings is None:
            key = (mesh.tp, mesh.cp > 1, pp)
            orders = self._orders.get(key)
            if orders is None:
                orders = self._orders[key] = self._far_orders(mesh, pp)
            placings = self._placed[degrees] = [self.coster.place(degrees, one) for one in orders]
        return placings

    def _far_orders(self, mesh: Mesh, pp: int) -> list[tuple[str, ...]]:
        sizes, per_node = {"tp": mesh.tp, "pp": pp}, self.coster.run.hardware.gpus_per_node or 1
        found: dict[int, tuple[str, ...]] = {}
        for order in ORDERS:
            stride = 1
            for axis in order:
                if axis == "dp" or (axis == "cp" and mesh.cp > 1):
                    break
                stride *= sizes.get(axis, 1)
            found.setdefault(per_node // stride, order)
        return list(found.values())


def _first_end() -> Stage:
    return Stage(stage=0, first_layer=0, end_layer=0, parameters=0, is_first=True, is_last=False)


def _least_waits_s(held: Held) -> float:
    """Of one microbatch, beside whatever passes."""
    reduce_s, gather_s, _ = held.traffic
    if not held.execution.overlap_dp:
        return 2 * gather_s + reduce_s + 3 * held.copies_s
    there_s, back_s = (
        least_exposed_s(gather_s, 0, inf),
        least_exposed_s(gather_s + reduce_s, 0, inf),
    )
    return there_s + back_s + 3 * held.copies_s


def _least_tail_s(held: Held) -> float:
    """Beside whatever passes."""
    found = stage_tail_s(held, held.traffic, _ANY, _ANY)
    return found if held.first is None else max(found, stage_tail_s(held, held.first, _ANY, _ANY))


def stage_tail_s(
    held: Held, traffic: StateTraffic,
    reduce_range: tuple[float, float], gather_range: tuple[float, float],
) -> float:  # fmt: skip
    """What of the traffic sticks out at least, beside passes of so many seconds."""
    if not held.execution.overlap_dp:
        return traffic.reduce_s + traffic.gather_s
    if held.execution.offload == "parameters":  # a pass may wait for weights, however long
        reduce_range = gather_range = (0.0, inf)
    reduce_s = least_exposed_s(traffic.reduce_s, *reduce_range)
    return reduce_s + least_exposed_s(traffic.gather_s, *gather_range)
