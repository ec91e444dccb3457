"""What layouts take at least, in seconds per sample, key by key as they are decided.

Every bound holds for all that can still be decided: a test compares searches that prune by them
with every layout tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.plan.collectives import Links
from launcher.plan.execution import Job
from launcher.plan.links import Link
from launcher.plan.records import Stage
from launcher.plan.schedule import SCHEDULES
from launcher.plan.schedule_records import StageTimes
from launcher.plan.search_bounds import quick_s
from launcher.plan.search_choice import ORDERS, Choice
from launcher.plan.search_cost import Coster, Mesh, has_late_weights, mesh_of
from launcher.plan.search_cuts import Cut
from launcher.plan.search_memory import Sharding
from launcher.plan.stage_time import BlockTimes, PartCost, StageState, part_cost, stage_state
from launcher.plan.step_time import tail_s_of, update_s


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a sharding takes at least."""

    busy_s: float
    """Of some stage, in its pipeline."""
    end_s: float
    """Behind the pipeline."""


@dataclass(frozen=True, kw_only=True)
class _Lightest:
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
        self._kinds: dict[object, list[StageTimes]] = {}
        self._p2p: dict[object, float] = {}

    def mesh_s(self, mesh: Mesh) -> float:
        """All work of a sample, shared out evenly: no pipeline, no wait for it, no tail."""
        devices = self.coster.devices
        return self._whole_s(mesh) * mesh.tp * mesh.cp / (mesh.micro * devices)

    def stages_s(self, mesh: Mesh, pp: int, dp: int) -> float:
        """Some stage has the average of the blocks, rounded up; a microbatch passes them all."""
        parts = self.coster.parts(mesh, False, self.coster.nearest(mesh))
        per_stage = -(-self.model.num_layers // pp)
        return per_stage * min(_pass_s(parts.block), _pass_s(parts.dense)) / (dp * mesh.micro)

    def _whole_s(self, mesh: Mesh) -> float:
        """Of one microbatch over all parts of the model."""
        parts = self.coster.parts(mesh, False, self.coster.nearest(mesh))
        dense = self._num_dense
        blocks = (self.model.num_layers - dense) * _pass_s(parts.block)
        return (
            blocks + dense * _pass_s(parts.dense) + _pass_s(parts.embedding) + _pass_s(parts.head)
        )

    def sharding_s(self, mesh: Mesh, pp: int, dp: int, count: int, sharding: Sharding) -> Floor:
        """The average stage with its traffic of weights and gradients, and the end of the step."""
        layers = -(-self.model.num_layers // pp)
        stage = Stage(
            stage=0, first_layer=0 if pp == 1 else self.model.num_layers - layers,
            end_layer=self.model.num_layers, parameters=0, is_first=pp == 1, is_last=pp == 1,
        )  # fmt: skip
        engine, zero_stage, offload = sharding
        job = self.coster.job(
            Choice(
                tp=mesh.tp, cp=mesh.cp, ep=mesh.ep, pp=pp, vpp=1, schedule="1f1b",
                recompute=mesh.recompute, engine=engine, zero_stage=zero_stage, offload=offload,
                sequence_parallel=mesh.split, order=ORDERS[0], micro_batch_size=mesh.micro,
                num_microbatches=count, dp=dp,
            )
        )  # fmt: skip
        nearest = self.coster.nearest(mesh)
        parts = self.coster.parts(mesh, False, nearest)
        lightest = self._lightest_state(job, stage)
        samples = mesh.micro * count * dp
        busy_s = 0.0
        if pp == 1 or zero_stage == 3:
            links = replace(nearest, shard=lightest.shard, dp=lightest.dp, replica=lightest.replica)
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
            traffic = replace(
                best.traffic,
                reduce_s=min(state.traffic.reduce_s for state, _ in found),
                gather_s=min(state.traffic.gather_s for state, _ in found),
            )
            state = replace(best, traffic=traffic)
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

    def pipeline_s(self, choice: Choice, cut: Cut) -> float:
        """The schedule's bound, whatever the sharding, on the quickest links of any order."""
        if choice.schedule not in SCHEDULES:
            return 0.0
        coster, mesh = self.coster, mesh_of(choice)
        late = has_late_weights(choice.schedule)
        key = (mesh, late, id(cut))
        if key not in self._kinds:
            # What sharded weights wait for is in the floor of the sharding.
            job = coster.mesh_job(mesh, late)
            costs = coster.costs(job, cut, late, coster.nearest(mesh))
            self._kinds[key] = [_times(cost, late) for cost in costs]
        name = (mesh[:5], choice.pp, choice.dp)
        if name not in self._p2p:
            self._p2p[name] = coster.quickest_p2p_s(coster.job(choice))
        count = choice.num_microbatches
        seconds = quick_s(choice.schedule, cut, count, self._kinds[key], self._p2p[name])
        return seconds / (choice.micro_batch_size * count * choice.dp)


def _times(cost: PartCost, splits: bool) -> StageTimes:
    """No transfer holds it up."""
    return StageTimes(
        forward_s=cost.forward_s,
        backward_s=cost.input_s + (0.0 if splits else cost.weight_s),
        weight_s=cost.weight_s if splits else 0.0,
    )


def _pass_s(times: BlockTimes) -> float:
    return times.total_s + times.wait_forward_s + times.wait_backward_s
