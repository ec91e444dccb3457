"""The fastest layouts that fit, out of all legal ones: best first, nothing lost, always the same.

A layout is decided in steps: degrees of a block and microbatch, stages, sharding, schedule and
chunks, rank order. After each step a bound says how fast anything below it can be at best. The most
promising is taken further first, and what is left when enough layouts are known exactly cannot be
faster. Memory is judged as soon as it can be. Only what survives is simulated, by the functions
that `launch plan` uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from launcher.config.rules import obeys_rules
from launcher.config.schema import is_schedule_file
from launcher.plan.collectives import Links
from launcher.plan.search_cost import Coster, Floor, MeshKey
from launcher.plan.search_space import ORDER, Choice, Space, changed, run_of

SLACK = 1 - 1e-9
"""Bounds and simulations add up the same numbers in different orders."""


@dataclass
class Counts:
    """What became of the layouts; a decided step of many layouts counts as one."""

    examined: int = 0
    """Partial and whole layouts that were given a bound."""
    over_memory: int = 0
    """Of these, dropped because nothing below them fits."""
    illegal: int = 0
    """Combinations that a rule refuses."""
    simulated: int = 0
    """Whole layouts whose schedule was walked."""
    too_slow: int = 0
    """Never taken further: even their bound is behind the last layout that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A layout and how long a step of it takes."""

    choice: Choice
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The best layouts, fastest first; of rank orders that make no other layout, the best one."""

    best: tuple[Ranked, ...]
    counts: Counts


@dataclass(frozen=True)
class _Mesh:
    """First step: what decides the time of a block."""

    key: MeshKey


@dataclass(frozen=True)
class _Stages:
    """Second step: all degrees, and the batch."""

    key: MeshKey
    pp: int
    dp: int
    count: int


@dataclass(frozen=True)
class _Sharded:
    """Third step."""

    stages: _Stages
    engine: str
    zero_stage: int


@dataclass(frozen=True)
class _Pipeline:
    """Fourth step; what is missing is the order of ranks."""

    sharded: _Sharded
    schedule: str
    vpp: int
    rank: int = 0
    """Among the pipelines of these stages, by their bounds."""


_Node = _Mesh | _Stages | _Sharded | _Pipeline | Choice
_Entry = tuple[float, bool, tuple[object, ...], int, _Node, Floor | None]


def rank_layouts(space: Space, limit: int) -> Ranking:
    """The `limit` fastest layouts that fit, by predicted tokens/s; ties as `Choice.tie` says."""
    return _Search(space, Coster(space.run, space.devices)).rank(limit)


def enumerate_choices(space: Space) -> Iterator[Choice]:
    """Every legal layout in every order of ranks, whether it fits or not."""
    search = _Search(space, Coster(space.run, space.devices))
    for mesh in search.meshes():
        for recompute in space.recomputes:
            for stages in search.stages(_Mesh((*mesh.key[:5], recompute))):
                for sharded in search.shardings(stages):
                    for pipeline in search.pipelines(sharded):
                        for order in search.orders(stages):
                            choice = _choice(pipeline, order)
                            if obeys_rules(run_of(space.run, choice)):
                                yield choice


@dataclass
class _Search:
    """The queue of one search, and what it has learned of the rules."""

    space: Space
    coster: Coster
    counts: Counts = field(default_factory=Counts)
    queue: list[_Entry] = field(default_factory=list)
    num_pushed: int = 0
    allowed: dict[object, bool] = field(default_factory=dict)
    known_pipelines: dict[_Stages, list[tuple[float, str, int]]] = field(default_factory=dict)
    known_orders: dict[object, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def rank(self, limit: int) -> Ranking:
        """Take the most promising further until enough are known exactly."""
        for mesh in self.meshes():
            self.push(self.coster.mesh_s(mesh.key), mesh)
        best: list[Ranked] = []
        seen: set[Choice] = set()
        while self.queue and len(best) < limit:
            bound, is_known, _, _, node, floor = heappop(self.queue)
            if isinstance(node, _Mesh):
                self.expand_mesh(node, bound)
            elif isinstance(node, _Stages):
                self.expand_stages(node, bound)
            elif isinstance(node, _Sharded):
                assert floor is not None
                self.expand_sharded(node, bound, floor)
            elif isinstance(node, _Pipeline):
                assert floor is not None
                self.expand_pipeline(node, bound, floor)
            elif (unordered := replace(node, order=())) not in seen:
                if is_known:
                    seen.add(unordered)
                    samples = node.micro_batch_size * node.num_microbatches * node.dp
                    best.append(Ranked(choice=node, step_s=bound * samples))
                else:
                    self.simulate(node)
        self.counts.too_slow = len(self.queue)
        return Ranking(best=tuple(best), counts=self.counts)

    def push(
        self, seconds: float, node: _Node, floor: Floor | None = None, known: bool = False
    ) -> None:
        """`seconds` per sample; of equal ones, those that are not known exactly go first."""
        self.counts.examined += not known
        tie = node.tie if isinstance(node, Choice) else ()
        bound = seconds if known else seconds * SLACK
        self.num_pushed += 1
        heappush(self.queue, (bound, known, tie, self.num_pushed, node, floor))

    # 1. Degrees of a block, and the microbatch; cheapest recomputation, which is the fastest.
    def meshes(self) -> Iterator[_Mesh]:
        """Legal ones."""
        space = self.space
        for tp in space.tps:
            for cp in space.cps:
                micros = self.micros(tp * cp)
                for ep in space.eps if micros else ():
                    for split in space.sequence_parallels:
                        if self.is_legal(tp=tp, cp=cp, ep=ep, sequence_parallel=split):
                            for micro in micros:
                                yield _Mesh((tp, cp, ep, split, micro, space.recomputes[0]))

    def micros(self, ranks: int) -> list[int]:
        """Microbatches that some dp allows."""
        found: set[int] = set()
        for pp in self.space.pps:
            dp, rest = divmod(self.space.devices, ranks * pp)
            if not rest and self.space.dp in (None, dp):
                found |= {micro for micro, _ in self.space.batches(dp)}
        return sorted(found)

    def expand_mesh(self, mesh: _Mesh, bound: float) -> None:
        """Stages, and the same with more recomputation, which never is faster."""
        for stages in self.stages(mesh):
            seconds = self.coster.stages_s(mesh.key, stages.pp, stages.dp)
            self.push(max(bound, seconds), stages)
        modes = self.space.recomputes
        later = modes.index(mesh.key[5]) + 1
        if later < len(modes):
            self.expand_later(_Mesh((*mesh.key[:5], modes[later])), bound)

    def expand_later(self, mesh: _Mesh, bound: float) -> None:
        self.push(max(bound, self.coster.mesh_s(mesh.key)), mesh)

    # 2. Stages and replicas.
    def stages(self, mesh: _Mesh) -> Iterator[_Stages]:
        """Those that leave a dp which makes the batch."""
        space = self.space
        tp, cp, ep, _, micro, _ = mesh.key
        for pp in space.pps:
            dp, rest = divmod(space.devices, tp * cp * pp)
            if rest or space.dp not in (None, dp) or dp * cp % ep:
                continue
            for size, count in space.batches(dp):
                if size == micro:
                    yield _Stages(mesh.key, pp, dp, count)

    def expand_stages(self, stages: _Stages, bound: float) -> None:
        """Push the shardings that may fit."""
        for sharded in self.shardings(stages):
            layout = self.coster.layout(_choice(_Pipeline(sharded, "1f1b", 1), ORDER))
            if not self.coster.may_fit(layout):
                self.counts.over_memory += 1
                continue
            floor = self.coster.sharding_s(layout)
            self.push(max(bound, floor.busy_s) + floor.end_s, sharded, floor)

    # 3. Sharding.
    def shardings(self, stages: _Stages) -> Iterator[_Sharded]:
        """Those that the rules allow with some schedule of the space."""
        for engine, stage in self.space.sharding:
            yield _Sharded(stages, engine, stage)

    def expand_sharded(self, sharded: _Sharded, bound: float, floor: Floor) -> None:
        """Push the first of its pipelines; each brings the next one when it is taken further."""
        self.push_pipeline(sharded, 0, bound, floor)

    def push_pipeline(self, sharded: _Sharded, rank: int, bound: float, floor: Floor) -> None:
        """The legal pipeline of this rank, or the next one."""
        ranked = self.ranked_pipelines(sharded.stages)
        for position in range(rank, len(ranked)):
            seconds, schedule, vpp = ranked[position]
            if self.is_pipeline_legal(sharded, schedule, vpp):
                pipeline = _Pipeline(sharded, schedule, vpp, position)
                self.push(max(bound, max(seconds, floor.busy_s) + floor.end_s), pipeline, floor)
                return

    def ranked_pipelines(self, stages: _Stages) -> list[tuple[float, str, int]]:
        """By their bounds, whatever the sharding."""
        if stages not in self.known_pipelines:
            sharded = _Sharded(stages, "deepspeed", 0)
            found = []
            for position, (schedule, vpp) in enumerate(self.schedules(stages.pp)):
                layout = self.coster.layout(_choice(_Pipeline(sharded, schedule, vpp), ORDER))
                if not self.is_schedule_legal(stages, schedule, vpp):
                    continue
                if not self.coster.activations_fit(layout):
                    self.counts.over_memory += 1
                    continue
                found.append((self.coster.pipeline_s(layout), position, schedule, vpp))
            self.known_pipelines[stages] = [(s, name, vpp) for s, _, name, vpp in sorted(found)]
        return self.known_pipelines[stages]

    # 4. Schedule and chunks.
    def schedules(self, pp: int) -> Iterator[tuple[str, int]]:
        """Names and chunks."""
        layers, names = self.space.run.model.num_layers, self.space.schedules
        # One stage works through its microbatches in any order alike.
        for schedule in names[:1] if pp == 1 else names:
            for vpp in self.space.chunks(schedule, pp):
                if vpp == 1 or pp * vpp <= layers:
                    yield schedule, vpp

    def is_schedule_legal(self, stages: _Stages, schedule: str, vpp: int) -> bool:
        """With some sharding."""
        return any(
            self.is_legal(
                pp=stages.pp, schedule=schedule, vpp=vpp, engine=engine, zero_stage=stage,
                num_microbatches=stages.count,
            )
            for engine, stage in self.space.sharding
        )  # fmt: skip

    def is_pipeline_legal(self, sharded: _Sharded, schedule: str, vpp: int) -> bool:
        """With this sharding."""
        stages = sharded.stages
        return self.is_legal(
            pp=stages.pp, schedule=schedule, vpp=vpp, engine=sharded.engine,
            zero_stage=sharded.zero_stage, num_microbatches=stages.count,
        )  # fmt: skip

    def pipelines(self, sharded: _Sharded) -> Iterator[_Pipeline]:
        """Legal ones."""
        for schedule, vpp in self.schedules(sharded.stages.pp):
            if self.is_pipeline_legal(sharded, schedule, vpp):
                yield _Pipeline(sharded, schedule, vpp)

    def expand_pipeline(self, pipeline: _Pipeline, bound: float, floor: Floor) -> None:
        """Push every order, if it fits."""
        self.push_pipeline(pipeline.sharded, pipeline.rank + 1, 0.0, floor)
        if not self.coster.fits(self.coster.layout(_choice(pipeline, ORDER))):
            self.counts.over_memory += 1
            return
        for order in self.orders(pipeline.sharded.stages):
            choice = _choice(pipeline, order)
            self.push(max(bound, self.coster.layout_s(self.coster.layout(choice))), choice)

    # 5. Order of ranks.
    def orders(self, stages: _Stages) -> tuple[tuple[str, ...], ...]:
        """One of those that put every axis on the same links."""
        tp, cp, ep, *_ = stages.key
        key = (tp, cp, ep, stages.dp, stages.pp)
        if key not in self.known_orders:
            plain = _Pipeline(_Sharded(stages, "deepspeed", 1), "1f1b", 1)
            found: dict[Links, tuple[str, ...]] = {}
            for order in self.space.orders(tp, cp, stages.dp, stages.pp):
                layout = self.coster.layout(_choice(plain, order))
                found.setdefault(self.coster.links(self.coster.job_of(layout)), order)
            self.known_orders[key] = tuple(found.values())
        return self.known_orders[key]

    def simulate(self, choice: Choice) -> None:
        """Know it exactly, if it is legal after all."""
        if not obeys_rules(run_of(self.space.run, choice)):
            self.counts.illegal += 1
            return
        self.counts.simulated += 1
        self.push(self.coster.exact_s(self.coster.layout(choice)), choice, known=True)

    def is_legal(self, **values: object) -> bool:
        """Whether no rule refuses these values with all others open."""
        key = tuple(values.items())
        if key not in self.allowed:
            degrees = _OPEN | values
            if not is_schedule_file(degrees["schedule"]):
                degrees["schedule_lines"] = None
            count = degrees.pop("num_microbatches", None)
            batch = {"micro_batch_size": None, "num_microbatches": count, "global_batch_size": None}
            run = changed(self.space.run, parallelism=degrees, train=batch)
            self.allowed[key] = obeys_rules(run)
            self.counts.illegal += not self.allowed[key]
        return self.allowed[key]


_OPEN: dict[str, object] = {
    "tp": None, "cp": 1, "ep": 1, "pp": None, "dp": None, "vpp": 1, "schedule": "1f1b",
    "recompute": None, "engine": "deepspeed", "zero_stage": 1, "sequence_parallel": False,
    "order": ORDER,
}  # fmt: skip


def _choice(pipeline: _Pipeline, order: tuple[str, ...]) -> Choice:
    """All steps together."""
    sharded, stages = pipeline.sharded, pipeline.sharded.stages
    tp, cp, ep, split, micro, recompute = stages.key
    return Choice(
        tp=tp, cp=cp, ep=ep, pp=stages.pp, vpp=pipeline.vpp, schedule=pipeline.schedule,
        recompute=recompute, engine=sharded.engine, zero_stage=sharded.zero_stage,
        sequence_parallel=split, order=order, micro_batch_size=micro,
        num_microbatches=stages.count, dp=stages.dp,
    )  # fmt: skip


def enumerate_lean(space: Space) -> Choice | None:
    """The layout that takes least memory: of every mesh and sharding those that keep least."""
    search = _Search(space, Coster(space.run, space.devices))
    best: tuple[int, tuple[object, ...], Choice] | None = None
    smallest: dict[object, int] = {}
    for mesh in search.meshes():
        tp, cp, ep, split, micro, _ = mesh.key
        smallest[tp, cp, ep, split] = min(micro, smallest.get((tp, cp, ep, split), micro))
    for mesh in search.meshes():
        tp, cp, ep, split, micro, _ = mesh.key
        if micro > 4 * smallest[tp, cp, ep, split]:
            continue
        for stages in search.stages(_Mesh((*mesh.key[:5], space.recomputes[-1]))):
            for sharded in search.shardings(stages):
                for pipeline in search.pipelines(sharded):
                    choice = _choice(pipeline, space.order or ORDER)
                    layout = search.coster.layout(choice)
                    if best is not None and not search.coster.activations_fit(layout, best[0]):
                        continue
                    found = (search.coster.peak_bytes(layout), choice.tie, choice)
                    if best is None or found[:2] < best[:2]:
                        best = found
    return best[2] if best else None
