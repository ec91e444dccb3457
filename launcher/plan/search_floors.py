"""What layouts take at least, in seconds per sample, key by key as they are decided.

Every bound holds for all that can still be decided: a test compares searches that prune by them
with every layout tried.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from launcher.plan.collectives import SLOWDOWN, Links
from launcher.plan.execution import Job
from launcher.plan.links import Link
from launcher.plan.records import Stage
from launcher.plan.schedule import SCHEDULES
from launcher.plan.search_bounds import Quad, UnitTimes, quick_s
from launcher.plan.search_choice import ORDERS
from launcher.plan.search_cost import Coster, Mesh, has_late_weights
from launcher.plan.search_cuts import Cut
from launcher.plan.search_memory import Sharding
from launcher.plan.search_stages import PLAINEST, Stages, choice_in
from launcher.plan.stage_time import (
    BlockTimes,
    PartCost,
    Parts,
    StageState,
    estimate_parts,
    part_cost,
    stage_state,
    unit_costs,
)
from launcher.plan.step_time import free_p2p_s, tail_s_of, update_s
from launcher.plan.tensor_traffic import runtime_tp_times


class Floor(NamedTuple):
    """What a sharding takes at least."""

    busy_s: float
    """Of some stage, in its pipeline."""
    end_s: float
    """Behind the pipeline."""


class _Lightest(NamedTuple):
    """State of a stage with its traffic at best, and the links of that."""

    state: StageState
    update_s: float
    shard: Link
    dp: Link
    replica: Link


class Floors:
    """Bounds of one run's layouts."""

    def __init__(self, coster: Coster) -> None:
        self.coster = coster
        self.model = coster.run.model
        experts = self.model.experts
        self._num_dense = min(self.model.num_layers, experts.num_dense_layers) if experts else 0
        self._lightest: dict[object, _Lightest] = {}
        self._units: dict[object, UnitTimes] = {}
        self._p2p: dict[object, float] = {}
        self._ends: dict[object, float] = {}

    def block_s(self, mesh: Mesh) -> float:
        """`mesh_s` of a microbatch that others divide: none of them takes less time per sample.

        A kernel or a collective of twice the size takes at most twice as long: none of their
        models starts below zero. What of tp hides beside products does not grow so.
        """
        run, layers = self.coster.run, self.model.num_layers
        if (run.hardware.gpu and run.hardware.gpu.kernels) or self.model.encoder:
            return 0.0
        if not run.parallelism.overlap_tp or mesh.tp == 1:
            return self.mesh_s(mesh)
        coster, nearest = self.coster, self.coster.nearest(mesh)
        job = coster.mesh_job(mesh, False)
        alone = replace(job, execution=replace(job.execution, overlap_tp=False))
        sent = runtime_tp_times(alone, nearest, 1, 0, 1.0 if mesh.recompute == "full" else 0.0)
        # A collective beside a product costs most of all less where SLOWDOWN has used all of it.
        hidden_s = (sent.forward_s + sent.backward_s) / (1 + SLOWDOWN)
        if self.model.experts is None:  # and no more than three times the products of a pass
            smallest = coster.kernels(mesh._replace(micro=1)).block
            hidden_s = min(hidden_s, 3 * mesh.micro * smallest.times.forward_s)
        parts = estimate_parts(alone, nearest, coster.kernels(mesh))
        whole_s = max(0.0, self._sum_s(parts) - layers * hidden_s)
        return whole_s * mesh.tp * mesh.cp / (mesh.micro * coster.devices)

    def mesh_s(self, mesh: Mesh) -> float:
        """All work of a sample, shared out evenly: no pipeline, no wait for it, no tail."""
        devices = self.coster.devices
        return self._whole_s(mesh) * mesh.tp * mesh.cp / (mesh.micro * devices)

    def stages_s(self, mesh: Mesh, pp: int, dp: int) -> float:
        """Some stage has the average of the blocks, rounded up; a microbatch passes them all."""
        parts = self.coster.nearest_parts(mesh)
        per_stage = -(-self.model.num_layers // pp)
        return per_stage * min(_pass_s(parts.block), _pass_s(parts.dense)) / (dp * mesh.micro)

    def _whole_s(self, mesh: Mesh) -> float:
        """Of one microbatch over all parts of the model."""
        return self._sum_s(self.coster.nearest_parts(mesh))

    def _sum_s(self, parts: Parts) -> float:
        dense = self._num_dense
        blocks = (self.model.num_layers - dense) * _pass_s(parts.block)
        return (
            blocks + dense * _pass_s(parts.dense) + _pass_s(parts.embedding) + _pass_s(parts.head)
        )

    def sharding_s(self, stages: Stages, sharding: Sharding) -> Floor:
        """The average stage with its traffic of weights and gradients, and the end of the step."""
        mesh, pp, dp, count, _ = stages
        stage, (_, zero_stage, _) = self._average_stage(pp), sharding
        job = self.coster.job(choice_in(stages, sharding, "1f1b", 1))
        nearest, parts = self.coster.nearest(mesh), self.coster.nearest_parts(mesh)
        lightest = self._lightest_state(job, stage)
        samples = mesh.micro * count * dp
        busy_s = 0.0
        if pp == 1 or zero_stage == 3:
            links = nearest._replace(shard=lightest.shard, dp=lightest.dp, replica=lightest.replica)
            cost = part_cost(job, stage, parts, links)
            busy_s = count * (cost.forward_s + cost.input_s + cost.weight_s)
        if zero_stage == 3:
            return Floor(busy_s=busy_s / samples, end_s=lightest.update_s / samples)
        # What may hide the traffic: the stage and both ends, with everything that these wait for.
        window = parts.block.times(stage.num_layers) + parts.embedding + parts.head
        waits = PartCost(
            forward_s=window.forward_s + 2 * window.wait_forward_s,
            input_s=window.input_s + 2 * window.wait_backward_s,
            weight_s=window.weight_s,
            wait_s=0.0,
        )
        end_s = tail_s_of(job, lightest.state, (waits,)) + lightest.update_s
        return Floor(busy_s=busy_s / samples, end_s=end_s / samples)

    def _average_stage(self, pp: int) -> Stage:
        """Some stage has so many blocks at least."""
        layers = -(-self.model.num_layers // pp)
        return Stage(
            stage=0, first_layer=0 if pp == 1 else self.model.num_layers - layers,
            end_layer=self.model.num_layers, parameters=0, is_first=pp == 1, is_last=pp == 1,
        )  # fmt: skip

    def _lightest_state(self, job: Job, stage: Stage) -> _Lightest:
        """Traffic of the stage's state over the quickest links that an order of ranks gives it."""
        layout = job.layout
        key = (
            layout.tp, layout.cp, layout.ep, layout.pp, layout.dp, layout.engine,
            layout.zero_stage, layout.offload,
        )  # fmt: skip
        if key not in self._lightest:
            found = [(stage_state(job, stage, links), links) for links in self._orders(job)]
            best, links = min(
                found, key=lambda pair: pair[0].traffic.reduce_s + pair[0].traffic.gather_s
            )
            traffic = best.traffic._replace(
                reduce_s=min(state.traffic.reduce_s for state, _ in found),
                gather_s=min(state.traffic.gather_s for state, _ in found),
            )
            state = best._replace(traffic=traffic)
            self._lightest[key] = _Lightest(
                state=state, update_s=update_s(job, state), shard=links.shard, dp=links.dp,
                replica=links.replica,
            )  # fmt: skip
        return self._lightest[key]

    def _orders(self, job: Job) -> list[Links]:
        """Of every place that an order of ranks gives to dp x cp, one."""
        layout = job.layout
        found: dict[int, tuple[str, ...]] = {}
        for order in ORDERS:
            stride = 1
            for axis in order:
                if axis == "dp" or (axis == "cp" and layout.cp > 1):
                    break
                stride *= {"tp": layout.tp, "pp": layout.pp}.get(axis, 1)
            found.setdefault(layout.gpus_per_node // stride, order)
        jobs = [replace(job, layout=replace(layout, order=order)) for order in found.values()]
        return [self.coster.links(one) for one in jobs]

    def pipeline_s(self, stages: Stages, name: str, late: bool, cut: Cut, p2p_s: float) -> float:
        """The schedule's bound, whatever the sharding, on the quickest links of any order."""
        if name not in SCHEDULES:
            return 0.0
        mesh, _, dp, count, _ = stages
        times = self._unit_times(mesh, late, self.coster.nearest(mesh))
        return quick_s(name, cut, count, times, p2p_s) / (mesh.micro * count * dp)

    def ordered_s(
        self, stages: Stages, sharding: Sharding, floor: Floor, name: str, cut: Cut, links: Links
    ) -> float:
        """Both together, on the links of one order of ranks."""
        mesh, pp, dp, count, _ = stages
        samples = mesh.micro * count * dp
        pipeline_s = 0.0
        if name in SCHEDULES:
            times = self._unit_times(mesh, has_late_weights(name), links)
            p2p_s = self._p2p_over(stages, links)
            pipeline_s = quick_s(name, cut, count, times, p2p_s) / samples
        end_s = floor.end_s
        if sharding[0] == "deepspeed" and sharding[1] < 3:  # nothing hides its traffic
            key = (mesh.tp, mesh.cp, mesh.ep, pp, dp, sharding, links.shard, links.replica)
            if key not in self._ends:
                job = self.coster.job(choice_in(stages, sharding, "1f1b", 1))
                state = stage_state(job, self._average_stage(pp), links)
                self._ends[key] = tail_s_of(job, state, ()) + update_s(job, state)
            end_s = max(end_s, self._ends[key] / samples)
        return max(pipeline_s, floor.busy_s) + end_s

    def _p2p_over(self, stages: Stages, links: Links) -> float:
        key = (stages.mesh[:5], stages.pp, links.pp)
        if key not in self._p2p:
            job = self.coster.job(choice_in(stages, PLAINEST, "1f1b", 1))
            self._p2p[key] = free_p2p_s(job, links)
        return self._p2p[key]

    def _unit_times(self, mesh: Mesh, late: bool, links: Links) -> UnitTimes:
        """Of a block, of one without experts, and of the model's ends: their sums are a part's
        times, as `part_cost` has them where nothing but blocks and ends takes time. What sharded
        weights wait for is in the sharding's floor.
        """
        key = (mesh, late, links.tp, links.cp, links.ep)
        found = self._units.get(key)
        if found is not None:
            return found
        parts = self.coster.parts(mesh, late, links)
        units = unit_costs(self.coster.mesh_job(mesh, late), parts, links)
        forward, backward, weight, _ = zip(*units, strict=True)
        passes = _added(forward, backward)
        work = _added(passes, weight)
        if late:
            found = UnitTimes(forward, backward, passes, work, weight)
        else:
            found = UnitTimes(forward, _added(backward, weight), work, work, None)
        self._units[key] = found
        return found

    def quickest_p2p_s(self, stages: Stages) -> float:
        """Of a transfer to the next stage, in any order of ranks."""
        mesh, pp, dp, _, _ = stages
        key = (mesh[:5], pp, dp)
        if key not in self._p2p:
            choice = choice_in(stages, PLAINEST, "1f1b", 1)
            self._p2p[key] = self.coster.quickest_p2p_s(self.coster.job(choice))
        return self._p2p[key]


def _added(one: Quad, other: Quad) -> Quad:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def _pass_s(times: BlockTimes) -> float:
    return times.total_s + times.wait_forward_s + times.wait_backward_s
