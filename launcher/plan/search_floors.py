"""What layouts take at least, in seconds per sample, key by key as they are decided.

Every bound holds for all that can still be decided: a test compares searches that prune by them
with every layout tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from launcher.plan.collectives import Links, StateTraffic, hop_s
from launcher.plan.execution import Execution
from launcher.plan.records import Stage
from launcher.plan.schedule import SCHEDULES
from launcher.plan.search_bounds import Quad, Row, UnitTimes, least_exposed_s, quick_rows, quick_s
from launcher.plan.search_choice import ORDER, ORDERS
from launcher.plan.search_cost import Coster, Mesh
from launcher.plan.search_cuts import Cut
from launcher.plan.search_memory import Sharding
from launcher.plan.search_mesh_floors import MeshFloors
from launcher.plan.search_stages import Stages, choice_in
from launcher.plan.stage_state import copies_s_of, sharded_waits
from launcher.plan.stage_time import (
    BlockTimes,
    unit_costs,
)
from launcher.plan.step_time import update_s


class Floor(NamedTuple):
    """What a sharding takes at least."""

    busy_s: float
    """Of some stage, in its pipeline."""
    end_s: float
    """Behind the pipeline."""

    def after_s(self, pipeline_s: float) -> float:
        """With a pipeline that takes at least so long without regard to the sharding."""
        return max(pipeline_s, self.busy_s) + self.end_s


class _Held(NamedTuple):
    """State of the average stage, with its traffic over some links."""

    execution: Execution
    traffic: StateTraffic
    update_s: float
    """With what every step ends with."""
    copies_s: float


class _Window(NamedTuple):
    """Seconds of the average stage's passes of one microbatch, beside which traffic may go."""

    forward_s: float
    backward_s: float
    pass_s: float
    """Both, and what they wait for."""
    forward_range: tuple[float, float]
    """No less and no more than such a stage takes for its forward pass, with what it waits for."""
    backward_range: tuple[float, float]


class Floors(MeshFloors):
    """Bounds of one run's layouts."""

    def __init__(self, coster: Coster) -> None:
        super().__init__(coster)
        self._lightest: dict[object, _Held] = {}
        self._states: dict[object, _Held] = {}
        self._placed: dict[object, list[Links]] = {}
        self._windows: dict[object, _Window] = {}
        self._averages: dict[int, Stage] = {}
        self._units: dict[object, UnitTimes] = {}
        self._rows: dict[object, list[Row]] = {}
        self._p2p: dict[object, float] = {}

    def least_s(self, stages: Stages, shardings: Sequence[Sharding], pipeline_s: float) -> float:
        """With the sharding that costs least, behind and in a pipeline that takes so long."""
        window = self._window(stages.mesh, stages.pp, None)
        held = [self._lightest_of(stages, one) for one in shardings]
        return min([self._floor(stages, one, window).after_s(pipeline_s) for one in held])

    def sharding_s(self, stages: Stages, sharding: Sharding) -> Floor:
        """The average stage with its traffic of weights and gradients, and the end of the step."""
        window = self._window(stages.mesh, stages.pp, None)
        return self._floor(stages, self._lightest_of(stages, sharding), window)

    def _lightest_of(self, stages: Stages, sharding: Sharding) -> _Held:
        mesh, pp, dp, _, _ = stages
        key = (mesh.tp, mesh.cp, mesh.ep, pp, dp, sharding)
        lightest = self._lightest.get(key)
        if lightest is None:
            lightest = self._lightest[key] = self._lightest_state(stages, sharding)
        return lightest

    def _floor(self, stages: Stages, held: _Held, window: _Window) -> Floor:
        mesh, _, dp, count, _ = stages
        samples = mesh.micro * count * dp
        if not held.traffic.per_microbatch:
            end_s = held.update_s + _tail_s(held, window)
            return Floor(busy_s=0.0, end_s=end_s / samples)
        waits = sharded_waits(
            held.traffic, held.copies_s, held.execution.overlap_dp,
            window.forward_s, window.backward_s,
        )  # fmt: skip
        busy_s = count * (window.pass_s + waits.forward_s + waits.backward_s)
        return Floor(busy_s=busy_s / samples, end_s=held.update_s / samples)

    def _window(self, mesh: Mesh, pp: int, links: Links | None) -> _Window:
        """Of the average stage; without links, over the nearest ones."""
        key = (mesh, pp, links and links[:3])
        found = self._windows.get(key)
        if found is None:
            parts = self.coster.parts(mesh, False, links or self.coster.nearest(mesh))
            layers = -(-self.model.num_layers // pp)
            kinds, ends = (parts.block, parts.dense), parts.embedding + parts.head
            forward_s = layers * min([one.forward_s for one in kinds])
            backward_s = layers * min([_backward_s(one) for one in kinds])
            if pp == 1:
                forward_s, backward_s = forward_s + ends.forward_s, backward_s + _backward_s(ends)
            waits_s = layers * min([one.wait_forward_s + one.wait_backward_s for one in kinds])
            # At most the stage and both ends, with everything that these wait for.
            longest_s = max([one.forward_s + 2 * one.wait_forward_s for one in kinds])
            back_s = max([_backward_s(one) + 2 * one.wait_backward_s for one in kinds])
            found = self._windows[key] = _Window(
                forward_s=forward_s,
                backward_s=backward_s,
                pass_s=forward_s + backward_s + waits_s,
                forward_range=(forward_s, layers * longest_s + ends.forward_s),
                backward_range=(backward_s, layers * back_s + _backward_s(ends)),
            )
        return found

    def _average_stage(self, pp: int) -> Stage:
        """Some stage has so many blocks at least."""
        found = self._averages.get(pp)
        if found is None:
            experts = self.model.experts  # blocks without any weigh less, and may be together
            light = experts.num_dense_layers if experts and pp > 1 else 0
            layers = -(-(self.model.num_layers - light) // pp)
            found = self._averages[pp] = Stage(
                stage=0, first_layer=0 if pp == 1 else self.model.num_layers - layers,
                end_layer=self.model.num_layers, parameters=0, is_first=pp == 1, is_last=pp == 1,
            )  # fmt: skip
        return found

    def _lightest_state(self, stages: Stages, sharding: Sharding) -> _Held:
        """Traffic of the average stage's state over the quickest links of any order of ranks."""
        found = [self._held(stages, sharding, links) for links in self._placings(stages)]
        traffic = found[0].traffic._replace(
            reduce_s=min([one.traffic.reduce_s for one in found]),
            gather_s=min([one.traffic.gather_s for one in found]),
        )
        return found[0]._replace(traffic=traffic)

    def _held(self, stages: Stages, sharding: Sharding, links: Links) -> _Held:
        mesh, pp, dp, _, _ = stages
        # Of dp and cp only the product counts: together they are the replicas.
        state_links = links.shard, links.replica, links.dp
        key = (mesh.tp, mesh.ep, pp, dp * mesh.cp, sharding, state_links)
        found = self._states.get(key)
        if found is None:
            job = self.coster.job(choice_in(stages, sharding, "1f1b", 1))
            state = self.coster.state(job, self._average_stage(pp), links)
            found = self._states[key] = _Held(
                execution=job.execution, traffic=state.traffic,
                update_s=update_s(job, state) + self.overhead_s,
                copies_s=copies_s_of(job, state.parameters),
            )  # fmt: skip
        return found

    def _placings(self, stages: Stages) -> list[Links]:
        """Of every place that an order of ranks gives to dp x cp, one."""
        mesh, pp, dp, _, _ = stages
        degrees = (mesh.tp, mesh.cp, mesh.ep, dp, pp)
        placings = self._placed.get(degrees)
        if placings is None:
            orders = self._far_orders(mesh, pp)
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

    def placed_s(self, stages: Stages, sharding: Sharding, links: Links) -> Floor:
        """As `sharding_s`, on the links of one order of ranks."""
        window = self._window(stages.mesh, stages.pp, links)
        return self._floor(stages, self._held(stages, sharding, links), window)

    def times(self, stages: Stages, late: bool, links: Links, p2p_s: float) -> Row:
        """What `pipeline_s` counts; `late`: of a split backward."""
        return self._unit_times(stages.mesh, late, links).row(p2p_s)

    def pipeline_s(self, stages: Stages, name: str, late: bool, cut: Cut, times: Row) -> float:
        """The schedule's bound, whatever the sharding."""
        if name not in SCHEDULES:
            return 0.0
        mesh, _, dp, count, _ = stages
        key = (name, id(cut), count)  # cuts are kept, so that a number is one cut's alone
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = quick_rows(name, cut, count, late)
        return quick_s(rows, times) / (mesh.micro * count * dp)

    def p2p_s(self, stages: Stages, links: Links) -> float:
        """Of a transfer to the next stage that leaves both free to compute."""
        if stages.pp == 1:
            return 0.0
        key = (stages.mesh[:5], links.pp)
        found = self._p2p.get(key)
        if found is None:
            job = self.coster.mesh_job(stages.mesh, False)
            found = hop_s(job, links) if job.execution.overlap_p2p else 0.0
            self._p2p[key] = found
        return found

    def quickest_p2p_s(self, stages: Stages) -> float:
        """In any order of ranks: stages on one node where that can be, or across nodes."""
        if stages.pp == 1:
            return 0.0
        mesh, pp, dp, _, _ = stages
        degrees, place = (mesh.tp, mesh.cp, mesh.ep, dp, pp), self.coster.place
        orders = (("pp", "tp", "cp", "dp"), ORDER)
        return min([self.p2p_s(stages, place(degrees, order)) for order in orders])

    def _unit_times(self, mesh: Mesh, late: bool, links: Links) -> UnitTimes:
        """Of a block, of one without experts, and of the model's ends: their sums are a part's
        times, as `part_cost` has them where nothing but blocks and ends takes time. What sharded
        weights wait for is in the sharding's floor.
        """
        key = (mesh, late, links[:3])
        found = self._units.get(key)
        if found is not None:
            return found
        parts = self.coster.parts(mesh, late, links)
        units = unit_costs(self.coster.mesh_job(mesh, late), parts, links)
        forward, backward, weight, _ = zip(*units, strict=True)
        if late:
            found = UnitTimes(forward, backward, weight)
        else:
            found = UnitTimes(forward, _added(backward, weight), (0.0, 0.0, 0.0, 0.0))
        self._units[key] = found
        return found


def _tail_s(held: _Held, window: _Window) -> float:
    """Least that `tail_s_of` says of the stage."""
    traffic = held.traffic
    if held.execution.offload == "parameters":  # a pass may wait for weights, however long
        window = window._replace(forward_range=(0.0, inf), backward_range=(0.0, inf))
    if not held.execution.overlap_dp:
        return traffic.reduce_s + traffic.gather_s
    reduce_s = least_exposed_s(traffic.reduce_s, *window.backward_range)
    return reduce_s + least_exposed_s(traffic.gather_s, *window.forward_range)


def _added(one: Quad, other: Quad) -> Quad:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def _backward_s(times: BlockTimes) -> float:
    return times.input_s + times.weight_s
