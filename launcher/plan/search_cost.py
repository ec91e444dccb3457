"""What a search asks again and again, kept: block times, links, splits, memory, simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from launcher.config.rules import obeys_rules
from launcher.config.schema import Run
from launcher.plan.collectives import Links, boundary_s
from launcher.plan.execution import Job, runtime_job
from launcher.plan.memory import peak_memory_bytes, usable_bytes
from launcher.plan.records import Layout, Stage
from launcher.plan.schedule import SCHEDULES, build_orders
from launcher.plan.schedule_choice import plan_chain, plan_schedule
from launcher.plan.schedule_clock import Durations, walk
from launcher.plan.schedule_records import Chain, StageTimes
from launcher.plan.search_bounds import peaks_of, shortest_s, split_times
from launcher.plan.search_space import ORDER, Space, changed
from launcher.plan.simulate import Simulation
from launcher.plan.stage_time import BlockTimes, PartCost, Parts, estimate_parts
from launcher.plan.stages import make_stages, split_layers
from launcher.plan.step_time import cost_parts, find_links, free_p2p_s, part_times, summarise

MeshKey = tuple[int, int, int, bool, int, str]
"""tp, cp, ep, sequence_parallel, micro_batch_size, recompute"""


class Coster:
    """Costs of the layouts of one run; all times are seconds per sample of the global batch."""

    def __init__(self, run: Run, devices: int) -> None:
        self.run, self.devices = run, devices
        self._jobs: dict[MeshKey, Job] = {}
        self._parts: dict[object, Parts] = {}
        self._bare: dict[object, Parts] = {}
        self._links: dict[object, Links] = {}
        self._splits: dict[object, list[tuple[int, int]]] = {}
        self._p2p: dict[object, float] = {}
        self._stages: dict[object, tuple[Stage, ...]] = {}
        self._walks: dict[object, float] = {}
        self._shardings: dict[object, tuple[tuple[str, int], ...]] = {}
        self._steps: dict[object, tuple[Job, Chain, tuple[PartCost, ...], Links]] = {}
        assert run.hardware.gpu is not None
        self.usable_bytes = usable_bytes(run.hardware.gpu)

    # Bounds, coarse to fine.
    def mesh_s(self, *key: object) -> float:
        """All work of a sample, shared out evenly: no pipeline, no wait, no tail."""
        tp, cp, _, _, micro, _ = key
        assert isinstance(tp, int) and isinstance(cp, int) and isinstance(micro, int)
        parts = self.mesh_parts(key)  # type: ignore[arg-type]
        return _total_s(parts, self.run) * tp * cp / (micro * self.devices)

    def stages_s(self, key: MeshKey, pp: int, dp: int, count: int) -> float:
        """Some stage has the average of the blocks, rounded up."""
        block = self.mesh_parts(key).block
        if self.run.model.experts is not None:
            return 0.0  # blocks differ; the average is all there is
        per_stage = -(-self.run.model.num_layers // pp)
        return per_stage * _pass_s(block) / (dp * key[4])

    def pipeline_s(
        self, key: MeshKey, pp: int, dp: int, count: int, schedule: str, vpp: int
    ) -> float:
        """The schedule's bound, with the quickest transfers that an order of ranks allows."""
        if schedule not in SCHEDULES:
            return 0.0
        recipe = SCHEDULES[schedule]
        chain = Chain(num_stages=pp, num_chunks=vpp, placement=recipe.placement)
        parts = self.mesh_parts(key)
        bounds = self.split(key, chain.num_parts)
        splits = recipe.splits_backward
        quickest = min((parts.block, parts.dense), key=_pass_s)
        times = split_times(
            bounds,
            _stage_times(quickest, splits),
            _stage_times(parts.embedding, splits),
            _stage_times(parts.head, splits),
        )
        p2p_s = self.quickest_p2p_s(key, pp, dp)
        return shortest_s(schedule, chain, count, times, p2p_s) / (count * key[4] * dp)

    def choice_s(self, run: Run, layout: Layout) -> float:
        """The schedule's bound with this layout's own times, and an exact end of the step."""
        job, chain, costs, links = self.step(run, layout)
        if layout.schedule not in SCHEDULES:
            return self.exact_s(run, layout)
        splits = SCHEDULES[layout.schedule].splits_backward
        times = part_times(job, costs, splits, links)
        makespan_s = shortest_s(
            layout.schedule, chain, layout.num_microbatches, times, free_p2p_s(job, links)
        )
        return self._step_s(run, layout, times, splits, makespan_s)

    def exact_s(self, run: Run, layout: Layout) -> float:
        """As `estimate_layout` says."""
        job, chain, costs, links = self.step(run, layout)
        if layout.schedule in SCHEDULES:
            splits = SCHEDULES[layout.schedule].splits_backward
        else:
            splits = any(each.kind == "W" for each in plan_schedule(run, layout).ranks[0])
        times = part_times(job, costs, splits, links)
        p2p_s = free_p2p_s(job, links)
        key = (layout.schedule, chain.num_stages, chain.num_chunks, layout.num_microbatches,
               tuple(times), p2p_s)  # fmt: skip
        if key not in self._walks:
            durations = Durations(times=times, p2p_s=p2p_s)
            if layout.schedule in SCHEDULES:
                # Transfers stand right behind what they send: without them it takes as long.
                ranks = build_orders(
                    layout.schedule, layout.pp, layout.num_microbatches, layout.vpp
                )
                timing = walk(chain, layout.num_microbatches, ranks, durations, False)
            else:
                schedule = plan_schedule(run, layout)
                timing = walk(chain, layout.num_microbatches, schedule.ranks, durations)
            self._walks[key] = timing.makespan_s
        return self._step_s(run, layout, times, splits, self._walks[key])

    def _step_s(
        self, run: Run, layout: Layout, times: Sequence[StageTimes], splits: bool, makespan_s: float
    ) -> float:
        job, chain, costs, links = self.step(run, layout)
        busy = tuple(
            layout.num_microbatches * sum(_work_s(times[chain.part(stage, chunk)], splits)
                                          for chunk in range(chain.num_chunks))
            for stage in range(chain.num_stages)
        )  # fmt: skip
        walked = Simulation(
            makespan_s=makespan_s, start_s=(), finish_s=(), busy_s=busy, peak_in_flight=(),
            times=tuple(times), p2p_s=0.0,
        )  # fmt: skip
        stages = self.stages(run, layout)
        time = summarise(job, stages, walked, chain, costs, links)
        return time.step_s / layout.global_batch_size

    # Memory.
    def may_fit(
        self, key: MeshKey, pp: int, dp: int, count: int, sharding: Sequence[tuple[str, int]]
    ) -> bool:
        """Whether a stage of the average number of blocks fits with one microbatch's chunk alive."""
        layers = -(-self.run.model.num_layers // pp)
        stage = Stage(
            stage=0, first_layer=0, end_layer=layers, parameters=0,
            is_first=pp == 1, is_last=pp == 1,
        )  # fmt: skip
        if self.run.model.experts is not None:
            return True
        for engine, zero_stage in reversed(sharding):
            layout = self.layout(key, pp=pp, dp=dp, vpp=1, engine=engine, zero_stage=zero_stage)
            # Blocks kept by a chunk are at least one.
            layout = replace(layout, vpp=layers)
            job = runtime_job(self._run_of(key), layout)
            if peak_memory_bytes(job, (stage,), (1,)) <= self.usable_bytes:
                return True
        return False

    def fits(self, run: Run, layout: Layout) -> bool:
        """As `estimate_layout` says."""
        return self.peak_bytes(run, layout) <= self.usable_bytes

    def peak_bytes(self, run: Run, layout: Layout) -> int:
        """Of the fullest rank."""
        job = runtime_job(run, layout)
        return peak_memory_bytes(job, self.stages(run, layout), peaks_of(run, layout))

    # What is kept.
    def legal_shardings(
        self, space: Space, pp: int, schedule: str, vpp: int, count: int
    ) -> tuple[tuple[str, int], ...]:
        """(engine, zero_stage) that no rule refuses with this pipeline."""
        facts_key = (pp, schedule, vpp, count)
        if facts_key not in self._shardings:
            base = {"tp": None, "dp": None, "cp": 1, "ep": 1, "pp": pp, "schedule": schedule,
                    "vpp": vpp, "sequence_parallel": False}  # fmt: skip
            if schedule in SCHEDULES:
                base["schedule_lines"] = None
            batch = {
                "num_microbatches": count, "micro_batch_size": None, "global_batch_size": None,
            }  # fmt: skip
            self._shardings[facts_key] = tuple(
                (engine, stage)
                for engine, stage in space.sharding
                if obeys_rules(
                    changed(
                        self.run,
                        parallelism={**base, "engine": engine, "zero_stage": stage},
                        train=batch,
                    )
                )
            )
        return self._shardings[facts_key]

    def mesh_parts(self, key: MeshKey) -> Parts:
        """Of the blocks, with tp and cp as near to each other as an order can put them."""
        if key not in self._parts:
            layout = self.layout(key, pp=1, dp=max(1, self.devices // (key[0] * key[1])))
            job = runtime_job(self._run_of(key), layout)
            self._parts[key] = estimate_parts(job, find_links(job))
            self._bare[key] = estimate_parts(job)
        return self._parts[key]

    def split(self, key: MeshKey, num_parts: int) -> list[tuple[int, int]]:
        """As `split_stages` does it."""
        self.mesh_parts(key)
        bare = self._bare[key]
        costs = (bare.block_s, bare.embedding_s, bare.head_s)
        if (num_parts, costs) not in self._splits:
            self._splits[num_parts, costs] = split_layers(
                self.run.model.num_layers, num_parts,
                block_cost=costs[0], first_cost=costs[1], last_cost=costs[2],
            )  # fmt: skip
        return self._splits[num_parts, costs]

    def stages(self, run: Run, layout: Layout) -> tuple[Stage, ...]:
        """As `plan_stages` says."""
        key = _mesh_key(layout)
        chain = plan_chain(run, layout)
        name = (key, chain.num_stages, chain.num_chunks, chain.placement)
        if name not in self._stages:
            bounds = self.split(key, chain.num_parts)
            self._stages[name] = make_stages(self.run.model, chain, bounds)
        return self._stages[name]

    def step(
        self, run: Run, layout: Layout
    ) -> tuple[Job, Chain, tuple[PartCost, ...], Links]:
        """All that the time of a step is made from."""
        key = (layout, run.parallelism.schedule)
        if key not in self._steps:
            job = runtime_job(run, layout)
            chain = plan_chain(run, layout)
            links = self.links(job)
            costs = cost_parts(job, self.stages(run, layout), chain, links)
            self._steps[key] = (job, chain, costs, links)
        return self._steps[key]

    def links(self, job: Job) -> Links:
        """Of a mesh in this order."""
        layout = job.layout
        key = (layout.tp, layout.cp, layout.ep, layout.pp, layout.dp, layout.order)
        if key not in self._links:
            self._links[key] = find_links(job)
        return self._links[key]

    def quickest_p2p_s(self, key: MeshKey, pp: int, dp: int) -> float:
        """Over all orders."""
        name = (key[:5], pp, dp)
        if name not in self._p2p:
            layout = self.layout(key, pp=pp, dp=dp)
            job = runtime_job(self._run_of(key), layout)
            orders = ("pp", "tp", "cp", "dp"), ORDER
            found = []
            for order in orders:
                one = replace(job, layout=replace(layout, order=order))
                found.append(free_p2p_s(one, self.links(one)))
            self._p2p[name] = min(found)
        return self._p2p[name]

    def _run_of(self, key: MeshKey) -> Run:
        return self.run

    def layout(
        self, key: MeshKey, *, pp: int, dp: int, vpp: int = 1, engine: str = "deepspeed",
        zero_stage: int = 1,
    ) -> Layout:  # fmt: skip
        """A layout that is right as far as it is decided."""
        tp, cp, ep, split, micro, recompute = key
        hardware, degrees = self.run.hardware, self.run.parallelism
        assert hardware.gpus_per_node is not None and self.run.train.sequence_length is not None
        return Layout(
            world_size=self.devices, nodes=hardware.num_nodes,
            gpus_per_node=hardware.gpus_per_node, tp=tp, cp=cp, ep=ep, pp=pp, vpp=vpp, dp=dp,
            zero_stage=zero_stage, engine=engine, micro_batch_size=micro, num_microbatches=1,
            global_batch_size=micro * dp, sequence_length=self.run.train.sequence_length,
            schedule="1f1b", recompute=recompute, order=ORDER, sequence_parallel=split,
            overlap_tp=tp > 1 and bool(getattr(degrees, "overlap_tp", False)),
            overlap_p2p=bool(getattr(degrees, "overlap_p2p", True)),
        )  # fmt: skip


def _mesh_key(layout: Layout) -> MeshKey:
    return (
        layout.tp, layout.cp, layout.ep, layout.sequence_parallel, layout.micro_batch_size,
        layout.recompute,
    )  # fmt: skip


def _pass_s(times: BlockTimes) -> float:
    return times.total_s + times.wait_forward_s + times.wait_backward_s


def _total_s(parts: Parts, run: Run) -> float:
    """Of one microbatch over all parts of the model."""
    experts = run.model.experts
    dense = min(run.model.num_layers, experts.num_dense_layers) if experts else 0
    blocks = (run.model.num_layers - dense) * _pass_s(parts.block) + dense * _pass_s(parts.dense)
    return blocks + _pass_s(parts.embedding) + _pass_s(parts.head)


def _stage_times(times: BlockTimes, splits: bool) -> StageTimes:
    backward_s = times.input_s + times.wait_backward_s
    return StageTimes(
        forward_s=times.forward_s + times.wait_forward_s,
        backward_s=backward_s + (0.0 if splits else times.weight_s),
        weight_s=times.weight_s if splits else 0.0,
    )


def _work_s(times: StageTimes, splits: bool) -> float:
    return times.forward_s + times.backward_s + (times.weight_s if splits else 0.0)
