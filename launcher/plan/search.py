"""The fastest layouts that fit, out of all legal ones: best first, nothing lost, always the same.

A layout is decided in steps: degrees of the block and batch, then pp, then schedule and chunks, then
sharding and rank order. After each step a bound says how fast anything below it can be at best
(`search_bounds`). The most promising is taken further first, and what is left when enough layouts
are known exactly cannot be faster. Memory is judged as soon as it can be. Only what survives is
simulated, by the same functions as `launch plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from launcher.config.rules import obeys_rules
from launcher.config.schema import Run
from launcher.plan.records import Layout
from launcher.plan.search_cost import Coster
from launcher.plan.search_space import Choice, Space, changed, layout_of, run_of

SLACK = 1 - 1e-9
"""Bounds and simulations add up the same numbers in different orders."""


@dataclass
class Counts:
    """What became of the layouts: one step of a decision counts as one."""

    examined: int = 0
    """Partial and whole layouts that were given a bound."""
    over_memory: int = 0
    """Of these, dropped because nothing below them fits."""
    illegal: int = 0
    """Dropped because a rule refuses them."""
    simulated: int = 0
    """Whole layouts that were simulated."""
    too_slow: int = 0
    """Never taken further: their bound is behind the last layout that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A layout and how long a step of it takes."""

    choice: Choice
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The best layouts, fastest first."""

    best: tuple[Ranked, ...]
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class _Mesh:
    """First step: what decides the time of a block, and the batch."""

    tp: int
    cp: int
    ep: int
    sequence_parallel: bool
    micro: int
    recompute: str


@dataclass(frozen=True, kw_only=True)
class _Stages:
    """Second step."""

    mesh: _Mesh
    pp: int
    dp: int
    count: int


@dataclass(frozen=True, kw_only=True)
class _Pipeline:
    """Third step."""

    stages: _Stages
    schedule: str
    vpp: int


_Node = _Mesh | _Stages | _Pipeline | Choice
_Entry = tuple[float, int, tuple[object, ...], int, _Node]


def rank_layouts(space: Space, limit: int) -> Ranking:
    """The `limit` fastest layouts that fit, by predicted tokens/s; ties as `Choice.tie` says."""
    return _Search(space=space, coster=Coster(space.run, space.devices)).rank(limit)


def enumerate_choices(space: Space) -> Iterator[Choice]:
    """Every legal layout, whether it fits or not: what `rank_layouts` is compared with in tests."""
    search = _Search(space=space, coster=Coster(space.run, space.devices))
    for mesh in search.meshes():
        for stages in search.stage_counts(mesh):
            for pipeline in search.pipelines(stages):
                for choice in search.choices(pipeline):
                    if obeys_rules(run_of(space.run, choice)):
                        yield choice


@dataclass
class _Search:
    """The queue of one search."""

    space: Space
    coster: Coster
    counts: Counts = field(default_factory=Counts)
    queue: list[_Entry] = field(default_factory=list)

    def rank(self, limit: int) -> Ranking:
        """Take the most promising further until enough are known exactly."""
        for mesh in self.meshes():
            self.push(self.coster.mesh_s(*self.mesh_key(mesh)), mesh)
        best: list[Ranked] = []
        while self.queue and len(best) < limit:
            bound, is_known, _, _, node = heappop(self.queue)
            if isinstance(node, _Mesh):
                self.expand_mesh(node, bound)
            elif isinstance(node, _Stages):
                self.expand_stages(node, bound)
            elif isinstance(node, _Pipeline):
                self.expand_pipeline(node, bound)
            elif is_known:
                samples = node.micro_batch_size * node.num_microbatches * node.dp
                best.append(Ranked(choice=node, step_s=bound * samples))
            else:
                self.simulate(node)
        self.counts.too_slow = len(self.queue)
        return Ranking(best=tuple(best), counts=self.counts)

    def push(self, seconds: float, node: _Node, known: bool = False) -> None:
        """`seconds` per sample; of equal ones, those that are not known exactly go first."""
        self.counts.examined += not known
        tie = node.tie if isinstance(node, Choice) else ()
        entry = (seconds if known else seconds * SLACK, int(known), tie, len(self.queue), node)
        heappush(self.queue, entry)

    # 1. Degrees of a block, and the batch.
    def meshes(self) -> Iterator[_Mesh]:
        """Legal ones."""
        space = self.space
        for tp in space.tps:
            for cp in space.cps:
                if space.devices % (tp * cp):
                    continue
                micros = self.micros(tp * cp)
                for ep in space.eps:
                    for split in space.sequence_parallels:
                        if self.is_legal(tp=tp, cp=cp, ep=ep, sequence_parallel=split):
                            for micro in micros:
                                for recompute in space.recomputes:
                                    yield _Mesh(
                                        tp=tp, cp=cp, ep=ep, sequence_parallel=split,
                                        micro=micro, recompute=recompute,
                                    )  # fmt: skip

    def micros(self, ranks: int) -> list[int]:
        """Microbatches that some dp allows."""
        found: set[int] = set()
        for pp in self.space.pps:
            dp, rest = divmod(self.space.devices, ranks * pp)
            if dp and not rest and self.space.dp in (None, dp):
                found |= {micro for micro, _ in self.space.batches(dp)}
        return sorted(found)

    def is_legal(self, **values: object) -> bool:
        """Whether no rule refuses these values with all others open."""
        plain = {"pp": None, "dp": None, "vpp": 1, "schedule": "1f1b", "schedule_lines": None}
        plain |= {"recompute": None, "engine": "deepspeed", "zero_stage": 1}
        closed = {"micro_batch_size": None, "num_microbatches": None, "global_batch_size": None}
        run = changed(self.space.run, parallelism=plain | values, train=closed)
        is_legal = obeys_rules(run)
        self.counts.illegal += not is_legal
        return is_legal

    def mesh_key(self, mesh: _Mesh) -> tuple[int, int, int, bool, int, str]:
        """As the coster takes it."""
        return (
            mesh.tp, mesh.cp, mesh.ep, mesh.sequence_parallel, mesh.micro, mesh.recompute
        )  # fmt: skip

    # 2. Stages.
    def stage_counts(self, mesh: _Mesh) -> Iterator[_Stages]:
        """Those that leave a dp which makes the batch."""
        space = self.space
        for pp in space.pps:
            dp, rest = divmod(space.devices, mesh.tp * mesh.cp * pp)
            if rest or not dp or space.dp not in (None, dp) or dp * mesh.cp % mesh.ep:
                continue
            for micro, count in space.batches(dp):
                if micro == mesh.micro:
                    yield _Stages(mesh=mesh, pp=pp, dp=dp, count=count)

    def expand_mesh(self, mesh: _Mesh, bound: float) -> None:
        for stages in self.stage_counts(mesh):
            key = self.mesh_key(mesh)
            self.push(max(bound, self.coster.stages_s(key, stages.pp, stages.dp, stages.count)), stages)

    # 3. Schedule and chunks.
    def pipelines(self, stages: _Stages) -> Iterator[_Pipeline]:
        """Legal ones, judged with each sharding that could allow them."""
        schedules = self.space.schedules
        # One stage works through its microbatches in any order alike.
        for schedule in schedules[:1] if stages.pp == 1 else schedules:
            for vpp in self.space.chunks(schedule, stages.pp):
                if stages.pp * vpp > self.space.run.model.num_layers and vpp > 1:
                    break
                yield _Pipeline(stages=stages, schedule=schedule, vpp=vpp)

    def expand_stages(self, stages: _Stages, bound: float) -> None:
        key = self.mesh_key(stages.mesh)
        if not self.coster.may_fit(key, stages.pp, stages.dp, stages.count, self.space.sharding):
            self.counts.over_memory += 1
            return
        for pipeline in self.pipelines(stages):
            if not self.is_pipeline_legal(pipeline):
                continue
            seconds = self.coster.pipeline_s(
                key, stages.pp, stages.dp, stages.count, pipeline.schedule, pipeline.vpp
            )
            self.push(max(bound, seconds), pipeline)

    def is_pipeline_legal(self, pipeline: _Pipeline) -> bool:
        """With any of the shardings."""
        return bool(self.shardings(pipeline))

    def shardings(self, pipeline: _Pipeline) -> tuple[tuple[str, int], ...]:
        """(engine, zero_stage) that the rules allow with this pipeline."""
        return self.coster.legal_shardings(
            self.space, pipeline.stages.pp, pipeline.schedule, pipeline.vpp, pipeline.stages.count
        )

    # 4. Sharding and rank order.
    def choices(self, pipeline: _Pipeline) -> Iterator[Choice]:
        """All of a pipeline."""
        for sharding in self.shardings(pipeline):
            yield from self.ordered(pipeline, sharding)

    def ordered(self, pipeline: _Pipeline, sharding: tuple[str, int]) -> Iterator[Choice]:
        stages = pipeline.stages
        mesh = stages.mesh
        for order in self.space.orders(mesh.tp, mesh.cp, stages.dp, stages.pp):
            yield Choice(
                tp=mesh.tp, cp=mesh.cp, ep=mesh.ep, pp=stages.pp, vpp=pipeline.vpp,
                schedule=pipeline.schedule, recompute=mesh.recompute, engine=sharding[0],
                zero_stage=sharding[1], sequence_parallel=mesh.sequence_parallel, order=order,
                micro_batch_size=mesh.micro, num_microbatches=stages.count, dp=stages.dp,
            )  # fmt: skip

    def expand_pipeline(self, pipeline: _Pipeline, bound: float) -> None:
        space = self.space
        for sharding in self.shardings(pipeline):
            first: Choice | None = None
            for choice in self.ordered(pipeline, sharding):
                if first is None:
                    first = choice
                    if not self.coster.fits(*layout_of(space.run, choice)):
                        self.counts.over_memory += 1
                        break
                run, layout = layout_of(space.run, choice)
                if not obeys_rules(run):
                    self.counts.illegal += 1
                    continue
                self.push(max(bound, self.coster.choice_s(run, layout)), choice)

    def simulate(self, choice: Choice) -> None:
        self.counts.simulated += 1
        run, layout = layout_of(self.space.run, choice)
        self.push(self.coster.exact_s(run, layout), choice, known=True)


Judge = Callable[[Run, Layout], bool]
