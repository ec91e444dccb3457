"""What a search asks again and again, kept: times of blocks, splits, memory, simulations.

Everything comes from the functions that the plan itself uses; a test compares the sums with
`estimate_layout`. Times that bound others are seconds per sample of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise, permutations

from launcher.config.schema import Model, Run, is_schedule_file
from launcher.plan.collectives import Links
from launcher.plan.execution import Job, runtime_job
from launcher.plan.links import Link
from launcher.plan.memory import in_flight_bytes, peak_memory_bytes, stage_memory, usable_bytes
from launcher.plan.records import Layout, Stage
from launcher.plan.schedule import SCHEDULES, build_orders
from launcher.plan.schedule_choice import plan_chain, plan_schedule
from launcher.plan.schedule_clock import Durations, walk
from launcher.plan.schedule_records import Chain, StageTimes, has_weight_actions
from launcher.plan.search_bounds import peaks_of, shortest_s
from launcher.plan.search_space import ORDER, Choice
from launcher.plan.stage_time import (
    BlockTimes,
    PartCost,
    Parts,
    StageState,
    estimate_parts,
    part_cost,
    stage_state,
)
from launcher.plan.stages import count_dense_layers, make_stages, split_layers
from launcher.plan.step_time import (
    end_of_step,
    find_links,
    free_p2p_s,
    part_times,
    tail_s_of,
    update_s,
)

ORDERS = tuple(permutations(ORDER))
MeshKey = tuple[int, int, int, bool, int, str]
"""tp, cp, ep, sequence_parallel, micro_batch_size, recompute"""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The model in parts, and which of them are alike."""

    model: Model
    chain: Chain
    bounds: tuple[tuple[int, int], ...]
    pieces: tuple[Stage, ...]
    """One part of every kind."""
    kinds: tuple[int, ...]
    """Index into `pieces`, part by part in the model's order."""

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """As `plan_stages` has them."""
        return make_stages(self.model, self.chain, self.bounds)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """One stage of every kind: as `summarise` has it, the last stands for all."""
        found = {
            (stage.num_layers, count_dense_layers(self.model, stage.first_layer, stage.end_layer),
             stage.is_first, stage.is_last): index
            for index, stage in enumerate(self.stages)
        }  # fmt: skip
        return tuple(found.values())

    @cached_property
    def sizes(self) -> tuple[tuple[int, bool, bool], ...]:
        """Blocks of every stage, and whether it has the model's first and last part."""
        return tuple((stage.num_layers, stage.is_first, stage.is_last) for stage in self.stages)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a layout takes at least, in seconds per sample."""

    busy_s: float
    """Of some stage, in its pipeline."""
    end_s: float
    """Behind the pipeline."""


@dataclass(frozen=True, kw_only=True)
class Lightest:
    """State of a stage with its traffic at best, and the links of that."""

    state: StageState
    shard: Link
    dp: Link
    replica: Link


class Coster:
    """Costs of the layouts of one run."""

    def __init__(self, run: Run, devices: int) -> None:
        assert run.hardware.gpu is not None
        self.run, self.devices = run, devices
        self.usable_bytes = usable_bytes(run.hardware.gpu)
        self._parts: dict[object, Parts] = {}
        self._links: dict[object, Links] = {}
        self._splits: dict[object, list[tuple[int, int]]] = {}
        self._cuts: dict[object, Cut] = {}
        self._quickest: dict[object, float] = {}
        self._walks: dict[object, float] = {}
        self._costs: dict[object, dict[object, PartCost]] = {}
        self._near: dict[int, int] = {}
        self._fullest_stages: dict[object, dict[tuple[object, int], int]] = {}
        self._state_sizes: dict[object, int] = {}
        self._activations: dict[object, int] = {}
        self._pipelines: dict[object, float] = {}
        self._nears: dict[object, int] = {}
        self._lightest: dict[object, Lightest] = {}

    # Bounds, coarse to fine.
    def mesh_s(self, key: MeshKey) -> float:
        """All work of a sample, shared out evenly: no pipeline, no wait for it, no tail."""
        tp, cp, _, _, micro, _ = key
        parts = self.parts(self.job(key), self.nearest(key))
        return _total_s(parts, self.run) * tp * cp / (micro * self.devices)

    def stages_s(self, key: MeshKey, pp: int, dp: int) -> float:
        """Some stage has the average of the blocks, rounded up."""
        parts = self.parts(self.job(key), self.nearest(key))
        per_stage = -(-self.run.model.num_layers // pp)
        return per_stage * min(_pass_s(parts.block), _pass_s(parts.dense)) / (dp * key[4])

    def sharding_s(self, layout: Layout) -> Floor:
        """That stage with its traffic of weights and gradients, and the end of the step."""
        job = self.job_of(layout)
        nearest = self.nearest(_mesh_key(layout))
        parts = self.parts(job, nearest)
        stage = self._typical_stage(layout)
        state = self._lightest_state(job, stage)
        samples = layout.global_batch_size
        update = update_s(job, state.state)
        if layout.zero_stage == 3:
            links = replace(nearest, shard=state.shard, dp=state.dp, replica=state.replica)
            cost = part_cost(job, stage, parts, links)
            busy_s = layout.num_microbatches * (cost.forward_s + cost.input_s + cost.weight_s)
            return Floor(busy_s=busy_s / samples, end_s=update / samples)
        blocks = parts.dense.times(0) + parts.block.times(stage.num_layers)
        window = blocks + parts.embedding + parts.head
        waits = PartCost(
            forward_s=window.forward_s + 2 * window.wait_forward_s,
            input_s=window.input_s + 2 * window.wait_backward_s,
            weight_s=window.weight_s,
            wait_s=0.0,
        )
        busy_s = 0.0
        if layout.pp == 1:
            cost = part_cost(job, stage, parts, nearest)
            busy_s = layout.num_microbatches * (cost.forward_s + cost.input_s + cost.weight_s)
        end_s = tail_s_of(job, state.state, (waits,)) + update
        return Floor(busy_s=busy_s / samples, end_s=end_s / samples)

    def _typical_stage(self, layout: Layout) -> Stage:
        """Some stage has at least as many blocks."""
        layers = -(-self.run.model.num_layers // layout.pp)
        is_all = layout.pp == 1
        return Stage(
            stage=0, first_layer=0 if is_all else self.run.model.num_layers - layers,
            end_layer=layers if is_all else self.run.model.num_layers, parameters=0,
            is_first=is_all, is_last=is_all,
        )  # fmt: skip

    def _lightest_state(self, job: Job, stage: Stage) -> Lightest:
        """Traffic of the stage's state over the quickest links that an order of ranks gives it."""
        layout = job.layout
        key = (layout.tp, layout.cp, layout.ep, layout.pp, layout.dp, layout.engine,
               layout.zero_stage)  # fmt: skip
        if key not in self._lightest:
            found = []
            for order in ORDERS:
                one = replace(job, layout=replace(layout, order=order))
                links = self.links(one)
                found.append((stage_state(one, stage, links), links))
            reduce_s = min(state.traffic.reduce_s for state, _ in found)
            gather_s = min(state.traffic.gather_s for state, _ in found)
            best, links = min(
                found, key=lambda pair: pair[0].traffic.reduce_s + pair[0].traffic.gather_s
            )
            traffic = replace(best.traffic, reduce_s=reduce_s, gather_s=gather_s)
            self._lightest[key] = Lightest(
                state=replace(best, traffic=traffic), shard=links.shard, dp=links.dp,
                replica=links.replica,
            )  # fmt: skip
        return self._lightest[key]

    def pipeline_s(self, layout: Layout) -> float:
        """The schedule's bound with the quickest links that an order of ranks can have."""
        if layout.schedule not in SCHEDULES:
            return 0.0
        key = (_mesh_key(layout), layout.pp, layout.schedule, layout.vpp, layout.num_microbatches)
        if key not in self._pipelines:
            self._pipelines[key] = self._pipeline_s(layout)
        return self._pipelines[key]

    def _pipeline_s(self, layout: Layout) -> float:
        job, cut = self.job_of(layout), self.cut(layout)
        links = self.nearest(_mesh_key(layout))
        splits = SCHEDULES[layout.schedule].splits_backward
        # What sharded weights wait for is in the floor of the sharding.
        plain = self.job_of(replace(layout, zero_stage=min(layout.zero_stage, 1)))
        times = self.times(plain, cut, links, splits)
        p2p_s = self.quickest_p2p_s(job)
        shortest = shortest_s(layout.schedule, cut.chain, layout.num_microbatches, times, p2p_s)
        return shortest / layout.global_batch_size

    def layout_s(self, layout: Layout) -> float:
        """The schedule's bound with this layout's own links, and the exact end of the step."""
        if layout.schedule not in SCHEDULES:
            return self.exact_s(layout)
        return self._step_s(layout, is_exact=False)

    def exact_s(self, layout: Layout) -> float:
        """As `estimate_layout` says."""
        return self._step_s(layout, is_exact=True)

    def _step_s(self, layout: Layout, is_exact: bool) -> float:
        job, cut = self.job_of(layout), self.cut(layout)
        links, count = self.links(job), layout.num_microbatches
        costs = self.costs(job, cut, links)
        p2p_s = free_p2p_s(job, links)
        splits = self.splits_backward(layout)
        of_kinds = part_times(job, costs, splits, links)
        times = [of_kinds[kind] for kind in cut.kinds]
        if is_exact:
            pipeline_s = self.walk_s(layout, cut.chain, times, p2p_s)
        else:
            pipeline_s = shortest_s(layout.schedule, cut.chain, count, times, p2p_s)
        chunks = range(cut.chain.num_chunks)
        ends = [
            (
                cut.stages[stage],
                [costs[cut.kinds[cut.chain.part(stage, chunk)]] for chunk in chunks],
            )
            for stage in cut.ends
        ]
        tail_s, optimizer_s = end_of_step(job, ends, links)
        return (pipeline_s + tail_s + optimizer_s) / layout.global_batch_size

    def walk_s(
        self, layout: Layout, chain: Chain, times: Sequence[StageTimes], p2p_s: float
    ) -> float:
        """From the first action to the last: the schedule, walked."""
        count = layout.num_microbatches
        key = (layout.schedule, chain.num_stages, chain.num_chunks, count, tuple(times), p2p_s)
        if key not in self._walks:
            durations = Durations(times=times, p2p_s=p2p_s)
            if layout.schedule in SCHEDULES:
                # Transfers stand right behind what they send: without them it takes as long.
                ranks = build_orders(layout.schedule, layout.pp, count, layout.vpp)
                timing = walk(chain, count, ranks, durations, has_transfers=False)
            else:
                timing = walk(chain, count, plan_schedule(self.run, layout).ranks, durations)
            self._walks[key] = timing.makespan_s
        return self._walks[key]

    def splits_backward(self, layout: Layout) -> bool:
        """Whether the schedule has W actions."""
        if layout.schedule in SCHEDULES:
            return SCHEDULES[layout.schedule].splits_backward
        return has_weight_actions(plan_schedule(self.run, layout).ranks)

    # Memory.
    def may_fit(self, layout: Layout) -> bool:
        """Whether the average stage fits with one block's activations of one microbatch alive."""
        if self.run.model.experts is not None or is_schedule_file(layout.schedule):
            return True
        stage = self._typical_stage(layout)
        job = self.job_of(replace(layout, vpp=stage.num_layers) if layout.pp > 1 else layout)
        return peak_memory_bytes(job, (stage,), (1,)) <= self.usable_bytes

    def fits(self, layout: Layout) -> bool:
        """As `estimate_layout` says."""
        cut = self.cut(layout)
        fullest = self._fullest(layout, cut)
        job = self.job_of(layout)
        for (size, stage), in_flight in fullest.items():
            least = self._state_bytes(job, cut, size, stage)
            if least + self._activation_bytes(job, cut, size, stage, in_flight) > self.usable_bytes:
                return False
        return self.peak_bytes(layout) <= self.usable_bytes

    def activations_fit(self, layout: Layout, limit: int | None = None) -> bool:
        """Whether they alone fit, with the leanest state that any sharding has."""
        limit = self.usable_bytes if limit is None else limit
        cut, job = self.cut(layout), self.job_of(layout)
        context = self.run.hardware.gpu.context_bytes if self.run.hardware.gpu else 0
        for (size, stage), in_flight in self._fullest(layout, cut).items():
            kept = self._activation_bytes(job, cut, size, stage, in_flight)
            if kept + context > limit:
                return False
        return True

    def peak_bytes(self, layout: Layout) -> int:
        """Of the fullest rank."""
        cut = self.cut(layout)
        fullest = self._fullest(layout, cut)
        stages = [cut.stages[stage] for _, stage in fullest]
        return peak_memory_bytes(self.job_of(layout), stages, list(fullest.values()))

    def _fullest(self, layout: Layout, cut: Cut) -> dict[tuple[object, int], int]:
        """Of the stages of each size the one that keeps most, and how many microbatches."""
        key = (id(cut), layout.schedule, layout.num_microbatches)
        if key not in self._fullest_stages:
            most: dict[object, tuple[int, int]] = {}
            peaks = peaks_of(self._run_of(layout), layout)
            for stage, (size, peak) in enumerate(zip(cut.sizes, peaks, strict=True)):
                if size not in most or most[size][0] < peak:
                    most[size] = peak, stage
            self._fullest_stages[key] = {
                (size, stage): peak for size, (peak, stage) in most.items()
            }
        return self._fullest_stages[key]

    def _state_bytes(self, job: Job, cut: Cut, size: object, stage: int) -> int:
        layout, gpu = job.layout, job.hardware.gpu
        key = (layout.tp, layout.cp, layout.ep, layout.pp, layout.dp, layout.engine,
               layout.zero_stage, layout.num_microbatches * layout.vpp == 1, size)  # fmt: skip
        if key not in self._state_sizes:
            assert gpu is not None
            found = stage_memory(job, cut.stages[stage], 1, gpu)
            state = found.parameters_bytes + found.gradients_bytes + found.optimizer_bytes
            self._state_sizes[key] = state + (gpu.context_bytes if job.execution.process else 0)
        return self._state_sizes[key]

    def _activation_bytes(
        self, job: Job, cut: Cut, size: object, stage: int, in_flight: int
    ) -> int:
        key = (_mesh_key(job.layout), job.layout.vpp, size, in_flight)
        if key not in self._activations:
            self._activations[key] = in_flight_bytes(job, cut.stages[stage], in_flight)
        return self._activations[key]

    # What is kept.
    def parts(self, job: Job, links: Links) -> Parts:
        """Times of blocks and of the model's ends over these links."""
        layout = job.layout
        key = (_mesh_key(layout), self._splits_name(layout), self._near[id(links)])
        if key not in self._parts:
            self._parts[key] = estimate_parts(job, links)
        return self._parts[key]

    def costs(self, job: Job, cut: Cut, links: Links) -> list[PartCost]:
        """Of one part of every kind."""
        layout = job.layout
        if layout.zero_stage == 3:
            parts = self.parts(job, links)
            return [part_cost(job, piece, parts, links) for piece in cut.pieces]
        key = (_mesh_key(layout), self._splits_name(layout), self._near[id(links)])
        known = self._costs.setdefault(key, {})
        found = []
        for piece in cut.pieces:
            first = piece.first_layer if self.run.model.experts is not None else 0
            kind = (piece.num_layers, first, piece.is_first, piece.is_last)
            if kind not in known:
                known[kind] = part_cost(job, piece, self.parts(job, links), links)
            found.append(known[kind])
        return found

    def times(self, job: Job, cut: Cut, links: Links, splits: bool) -> list[StageTimes]:
        """Of every part, in the model's order; no transfer holds it up."""
        of_kinds = [
            StageTimes(
                forward_s=cost.forward_s,
                backward_s=cost.input_s + (0.0 if splits else cost.weight_s),
                weight_s=cost.weight_s if splits else 0.0,
            )
            for cost in self.costs(job, cut, links)
        ]
        return [of_kinds[kind] for kind in cut.kinds]

    def cut(self, layout: Layout) -> Cut:
        """As `plan_stages` splits the model."""
        chain = plan_chain(self._run_of(layout), layout)
        key = _mesh_key(layout), chain.num_stages, chain.num_chunks, chain.placement
        if key not in self._cuts:
            self._cuts[key] = self._make_cut(layout, chain)
        return self._cuts[key]

    def _make_cut(self, layout: Layout, chain: Chain) -> Cut:
        by_hand = self.run.parallelism.layers_per_stage
        if by_hand is not None:
            ends = list(accumulate(by_hand, initial=0))
            return _cut(self.run, chain, list(pairwise(ends)))
        name = (_mesh_key(layout), "alone")
        if name not in self._parts:
            self._parts[name] = estimate_parts(self.job_of(layout))
        alone, model = self._parts[name], self.run.model
        costs = (alone.block_s, alone.embedding_s, alone.head_s)
        if (chain, costs) in self._cuts:
            return self._cuts[chain, costs]
        bounds = split_layers(
            model.num_layers, chain.num_parts,
            block_cost=costs[0], first_cost=costs[1], last_cost=costs[2],
        )  # fmt: skip
        self._cuts[chain, costs] = cut = _cut(self.run, chain, bounds)
        return cut

    def links(self, job: Job) -> Links:
        """Of a mesh in its order of ranks."""
        layout = job.layout
        key = (layout.tp, layout.cp, layout.ep, layout.pp, layout.dp, layout.order)
        if key not in self._links:
            self._links[key] = links = find_links(job)
            near = (links.tp, links.cp, links.ep)
            self._near[id(links)] = self._nears.setdefault(near, len(self._nears))
        return self._links[key]

    def nearest(self, key: MeshKey) -> Links:
        """Links of tp, cp and ep where no other axis is in their way."""
        return self.links(self.job(key))

    def quickest_p2p_s(self, job: Job) -> float:
        """Over all orders of ranks."""
        layout = job.layout
        name = (_mesh_key(layout)[:5], layout.pp, layout.dp)
        if name not in self._quickest:
            first = replace(job, layout=replace(layout, order=("pp", "tp", "cp", "dp")))
            plain = replace(job, layout=replace(layout, order=ORDER))
            jobs = (first, plain)
            self._quickest[name] = min(free_p2p_s(one, self.links(one)) for one in jobs)
        return self._quickest[name]

    def job(self, key: MeshKey) -> Job:
        """Of a mesh alone: no pipeline."""
        tp, cp, ep, split, micro, recompute = key
        dp = max(1, self.devices // (tp * cp))
        return self.job_of(
            self.layout(
                Choice(
                    tp=tp,
                    cp=cp,
                    ep=ep,
                    pp=1,
                    vpp=1,
                    schedule="1f1b",
                    recompute=recompute,
                    engine="deepspeed",
                    zero_stage=1,
                    sequence_parallel=split,
                    order=ORDER,
                    micro_batch_size=micro,
                    num_microbatches=1,
                    dp=dp,
                )
            )
        )

    def job_of(self, layout: Layout) -> Job:
        """As the plan makes it."""
        return runtime_job(self.run, layout)

    def layout(self, choice: Choice) -> Layout:
        """As `build_layout` makes it of the run with this choice."""
        hardware, degrees, train = self.run.hardware, self.run.parallelism, self.run.train
        assert hardware.gpus_per_node is not None
        assert train.sequence_length is not None
        return Layout(
            world_size=self.devices, nodes=hardware.num_nodes,
            gpus_per_node=hardware.gpus_per_node, tp=choice.tp, cp=choice.cp, ep=choice.ep,
            pp=choice.pp, vpp=choice.vpp, dp=choice.dp, zero_stage=choice.zero_stage,
            engine=choice.engine, micro_batch_size=choice.micro_batch_size,
            num_microbatches=choice.num_microbatches,
            global_batch_size=choice.micro_batch_size * choice.num_microbatches * choice.dp,
            sequence_length=train.sequence_length, schedule=choice.schedule,
            recompute=choice.recompute, order=choice.order,
            sequence_parallel=choice.sequence_parallel,
            overlap_tp=choice.tp > 1 and bool(degrees.overlap_tp), overlap_p2p=degrees.overlap_p2p,
            recompute_every=degrees.recompute_every, offload=degrees.offload,
        )  # fmt: skip

    def _splits_name(self, layout: Layout) -> bool | None:
        """Of what a schedule changes in a block's time: whether its backward is split."""
        recipe = SCHEDULES.get(layout.schedule)
        return recipe.splits_backward if recipe else None

    def _run_of(self, layout: Layout) -> Run:
        """The run whose file the schedule may come from."""
        if is_schedule_file(layout.schedule) or self.run.parallelism.schedule_lines is None:
            return self.run
        plain = self.run.parallelism.model_copy(update={"schedule_lines": None})
        return self.run.model_copy(update={"parallelism": plain})


def _cut(run: Run, chain: Chain, bounds: Sequence[tuple[int, int]]) -> Cut:
    pieces: dict[object, int] = {}
    found: list[Stage] = []
    kinds: list[int] = []
    for part, (first, end) in enumerate(bounds):
        is_first, is_last = part == 0, part == chain.num_parts - 1
        dense = count_dense_layers(run.model, first, end)
        kind = (end - first, dense, is_first, is_last)
        if kind not in pieces:
            pieces[kind] = len(found)
            found.append(
                Stage(
                    stage=0,
                    first_layer=first,
                    end_layer=end,
                    parameters=0,
                    is_first=is_first,
                    is_last=is_last,
                )
            )
        kinds.append(pieces[kind])
    return Cut(
        model=run.model, chain=chain, bounds=tuple(bounds), pieces=tuple(found),
        kinds=tuple(kinds),
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
