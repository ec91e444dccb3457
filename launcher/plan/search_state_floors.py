"""What the state of layouts takes at least: sharded weights in passes, and the end of a step."""

from __future__ import annotations

from collections.abc import Sequence
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
from launcher.plan.search_mesh_floors import MeshFloors
from launcher.plan.search_sharded import least_traffic
from launcher.plan.search_stages import Stages, choice_in
from launcher.plan.stage_state import copies_s_of, sharded_waits
from launcher.plan.stage_time import BlockTimes, Parts
from launcher.plan.step_time import embedding_s, update_s

NEAR_AND_FAR = (("pp", "tp", "cp", "dp"), ORDER)
"""Orders of ranks with stages on one node where that can be, and across nodes."""


class Floor(NamedTuple):
    """What a sharding takes at least."""

    busy_s: float
    """Of some stage, in its pipeline."""
    end_s: float
    """Behind the pipeline."""

    def after_s(self, pipeline_s: float) -> float:
        """With a pipeline that takes at least so long without regard to the sharding."""
        busy_s = self.busy_s
        return (pipeline_s if pipeline_s > busy_s else busy_s) + self.end_s


class _Held(NamedTuple):
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


class _Window(NamedTuple):
    """Seconds of the average stage's passes of one microbatch, beside which traffic may go."""

    forward_s: float
    backward_s: float
    pass_s: float
    """Both, and what they wait for."""
    forward_range: tuple[float, float]
    """No less and no more than such a stage takes for its forward pass, with what it waits for."""
    backward_range: tuple[float, float]
    first_forward_range: tuple[float, float]
    """The same of a stage that has the model's first end, and any number of blocks."""
    first_backward_range: tuple[float, float]


class StateFloors(MeshFloors):
    """Bounds that know of shardings, but of no schedule."""

    def __init__(self, coster: Coster) -> None:
        super().__init__(coster)
        self._lightest: dict[object, dict[Sharding, _Held]] = {}
        self._states: dict[object, _Held] = {}
        self._placed: dict[object, list[Links]] = {}
        self._orders: dict[object, list[tuple[str, ...]]] = {}
        self._windows: dict[object, _Window] = {}
        self._averages: dict[int, Stage] = {}
        self._work: dict[object, float] = {}

    def least_s(self, stages: Stages, shardings: Sequence[Sharding], pipeline_s: float) -> float:
        """With the sharding that costs least, behind and in a pipeline that takes so long."""
        window = self._window(stages.mesh, stages.pp, None)
        found = []
        for held in self._lightest_of(stages, shardings):
            busy_s, end_s = self._floor(stages, held, window)
            found.append((pipeline_s if pipeline_s > busy_s else busy_s) + end_s)
        return min(found)

    def sharding_s(self, stages: Stages, sharding: Sharding) -> Floor:
        """The average stage with its traffic of weights and gradients, and the end of the step."""
        window = self._window(stages.mesh, stages.pp, None)
        return Floor(*self._floor(stages, self._lightest_of(stages, [sharding])[0], window))

    def together_s(self, stages: Stages, sharding: Sharding, over: Sequence[Links]) -> list[Floor]:
        """The same for each place that tp, ep and the replicas have together, cp on the nearest
        links.
        """
        window, found = self._window(stages.mesh, stages.pp, None), []
        for links in over:
            busy_s, end_s = self._floor(stages, self._held(stages, sharding, links), window)
            found.append(Floor(max(busy_s, self._work_s(stages, links)), end_s))
        return found

    def _work_s(self, stages: Stages, links: Links) -> float:
        """All work of a sample with tp and ep on these links."""
        mesh = stages.mesh
        if mesh.tp == mesh.ep == 1:
            return 0.0
        key = (mesh, links.tp, links.ep)
        found = self._work.get(key)
        if found is None:
            nearest = self.coster.nearest(mesh)._replace(tp=links.tp, ep=links.ep)
            whole_s = self._sum_s(self.coster.parts(mesh, False, nearest))
            found = whole_s * mesh.tp * mesh.cp / (mesh.micro * self.coster.devices)
            self._work[key] = found
        return found

    def placed_s(self, stages: Stages, sharding: Sharding, links: Links) -> Floor:
        """As `sharding_s`, on the links of one order of ranks."""
        window = self._window(stages.mesh, stages.pp, links)
        return Floor(*self._floor(stages, self._held(stages, sharding, links), window))

    def _floor(self, stages: Stages, held: _Held, window: _Window) -> tuple[float, float]:
        """The two numbers of a `Floor`."""
        mesh, _, dp, count, _ = stages
        samples = mesh.micro * count * dp
        if not held.traffic.per_microbatch:
            end_s = held.update_s + _tail_s(held, window) + held.embedding_s
            return 0.0, end_s / samples
        waits = sharded_waits(
            held.traffic, held.copies_s, held.execution.overlap_dp,
            window.forward_s, window.backward_s,
        )  # fmt: skip
        busy_s = count * (window.pass_s + waits.forward_s + waits.backward_s)
        return busy_s / samples, (held.update_s + held.embedding_s) / samples

    def _window(self, mesh: Mesh, pp: int, links: Links | None) -> _Window:
        """Of the average stage; without links, over the nearest ones."""
        key = (mesh, pp, links and links[:3])
        found = self._windows.get(key)
        if found is None:
            coster = self.coster
            parts = coster.parts(mesh, False, links) if links else coster.nearest_parts(mesh)
            found = self._windows[key] = self._make_window(parts, pp)
        return found

    def _make_window(self, parts: Parts, pp: int) -> _Window:
        """Written out flat: searches ask for thousands."""
        (block, dense, first, last), blocks = parts, self._blocks(pp)
        plain, every = self._num_dense, self.model.num_layers
        first_s, first_back_s = first.forward_s, _backward_s(first)
        ends_s, ends_back_s = first_s + last.forward_s, first_back_s + _backward_s(last)
        block_back_s = _backward_s(block)
        forward_s, backward_s = blocks * block.forward_s, blocks * block_back_s
        waits_s = blocks * (block.wait_forward_s + block.wait_backward_s)
        # At most the stage and both ends (an encoder is one), with everything that these wait for.
        most_s = ends_s + 2 * first.wait_forward_s
        most_back_s = ends_back_s + 2 * first.wait_backward_s
        longest_s = block.forward_s + 2 * block.wait_forward_s
        back_s = block_back_s + 2 * block.wait_backward_s
        if plain:
            longest_s = max(longest_s, dense.forward_s + 2 * dense.wait_forward_s)
            back_s = max(back_s, _backward_s(dense) + 2 * dense.wait_backward_s)
        if pp == 1:
            forward_s += plain * dense.forward_s + ends_s
            backward_s += plain * _backward_s(dense) + ends_back_s
            waits_s += plain * (dense.wait_forward_s + dense.wait_backward_s)
        layers = blocks + plain
        return _Window(
            forward_s, backward_s, forward_s + backward_s + waits_s,
            (forward_s, layers * longest_s + most_s),
            (backward_s, layers * back_s + most_back_s),
            (first_s, every * longest_s + most_s),
            (first_back_s, every * back_s + most_back_s),
        )  # fmt: skip

    def _lightest_of(self, stages: Stages, shardings: Sequence[Sharding]) -> list[_Held]:
        """Traffic of the average stage's state over the quickest links of any order of ranks."""
        mesh, pp, dp, _, _ = stages
        key = (mesh.tp, mesh.cp, mesh.ep, pp, dp)
        known = self._lightest.get(key)
        if known is None:
            known = self._lightest[key] = {}
        for sharding in shardings:
            if sharding not in known:
                known[sharding] = self._lightest_held(stages, sharding)
        return [known[sharding] for sharding in shardings]

    def _lightest_held(self, stages: Stages, sharding: Sharding) -> _Held:
        found = [self._held(stages, sharding, links) for links in self.placings(stages)]
        firsts = [one.first for one in found if one.first]
        execution, _, _, update_s, copies_s, _ = found[0]
        return _Held(
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

    def _held(self, stages: Stages, sharding: Sharding, links: Links) -> _Held:
        mesh, pp, dp, _, _ = stages
        # Of dp and cp only the product counts: together they are the replicas.
        over = links[3:] if self.model.tie_embeddings else links[4:]
        key = (mesh.tp, mesh.ep, pp, dp * mesh.cp, sharding, over)
        found = self._states.get(key)
        if found is None:
            job = self.coster.job(choice_in(stages, sharding, "1f1b", 1))
            found = self._states[key] = self._make_held(job, pp, links)
        return found

    def _make_held(self, job: Job, pp: int, links: Links) -> _Held:
        state, first, traffic = self.coster.state(job, self._average_stage(pp), links), None, None
        least_s = update_s(job, state)
        # A stage with the first end has no less than that: no message of a block is quicker for it.
        if pp > 1:
            first = self.coster.state(job, _first_end(), links)
            least_s = max(least_s, update_s(job, first))
            if sum(first.traffic[:2]) > sum(state.traffic[:2]):
                traffic = first.traffic
        return _Held(
            execution=job.execution, traffic=state.traffic, first=traffic,
            update_s=least_s + self.overhead_s, copies_s=copies_s_of(job, state.parameters),
            embedding_s=embedding_s(job, links),
        )  # fmt: skip

    def _blocks(self, pp: int) -> int:
        """Some stage has so many at least, of those that have experts where some have none."""
        return -(-(self.model.num_layers - self._num_dense) // pp)

    def _average_stage(self, pp: int) -> Stage:
        """With these blocks alone; one of one stage has all."""
        found = self._averages.get(pp)
        if found is None:
            every, blocks = self.model.num_layers, self._blocks(pp)
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
        """No others lie nearer: replicas are neighbours in these, those of experts in some."""
        sizes, per_node = {"tp": mesh.tp, "pp": pp}, self.coster.run.hardware.gpus_per_node or 1
        found: dict[int, tuple[str, ...]] = {}
        for order in _NEIGHBOURS:
            stride = 1
            for axis in order:
                if axis == "dp" or (axis == "cp" and mesh.cp > 1):
                    break
                stride *= sizes.get(axis, 1)
            found.setdefault(per_node // stride, order)
        return list(found.values())


_NEIGHBOURS = sorted(
    (order for order in ORDERS if abs(order.index("cp") - order.index("dp")) == 1),
    key=lambda order: order[-1] != "pp",
)


def _first_end() -> Stage:
    return Stage(stage=0, first_layer=0, end_layer=0, parameters=0, is_first=True, is_last=False)


def _tail_s(held: _Held, window: _Window) -> float:
    """Least that `tail_s_of` says of the average stage, or of the one with the first end."""
    reduce_range, gather_range = window.backward_range, window.forward_range
    found = _stage_tail_s(held, held.traffic, reduce_range, gather_range)
    if held.first is None:
        return found
    reduce_range, gather_range = window.first_backward_range, window.first_forward_range
    return max(found, _stage_tail_s(held, held.first, reduce_range, gather_range))


def _stage_tail_s(
    held: _Held, traffic: StateTraffic,
    reduce_range: tuple[float, float], gather_range: tuple[float, float],
) -> float:  # fmt: skip
    if not held.execution.overlap_dp:
        return traffic.reduce_s + traffic.gather_s
    if held.execution.offload == "parameters":  # a pass may wait for weights, however long
        reduce_range = gather_range = (0.0, inf)
    reduce_s = least_exposed_s(traffic.reduce_s, *reduce_range)
    return reduce_s + least_exposed_s(traffic.gather_s, *gather_range)


def _backward_s(times: BlockTimes) -> float:
    return times.input_s + times.weight_s
