"""What a search asks again and again, kept: links, times of blocks, splits, exact step times.

Everything comes from the functions that the plan itself uses; a test compares the sums with
`estimate_layout`.
"""

from __future__ import annotations

from typing import NamedTuple

from launcher.config.schema import Run, is_schedule_file
from launcher.plan.collectives import Links, PassTimes
from launcher.plan.execution import Job
from launcher.plan.links import stride_link
from launcher.plan.records import Layout, Stage
from launcher.plan.schedule import SCHEDULES
from launcher.plan.schedule_choice import named_chain, plan_file
from launcher.plan.schedule_records import Chain, StageTimes, has_weight_actions
from launcher.plan.search_choice import Choice
from launcher.plan.search_cuts import Cut, Cuts
from launcher.plan.search_jobs import Alike, Jobs, Mesh, mesh_of
from launcher.plan.search_links import quickest_tp
from launcher.plan.search_walks import Walks
from launcher.plan.stage_state import StageState, stage_state
from launcher.plan.stage_time import (
    Kernels,
    PartCost,
    Parts,
    estimate_parts,
    list_kernels,
    part_cost,
)
from launcher.plan.stages import dense_layers_of
from launcher.plan.step_time import end_of_step, free_p2p_s, part_times, place_links


class _Pipeline(NamedTuple):
    """Of every kind of parts the cost, and the times of its actions."""

    costs: list[PartCost]
    times: list[StageTimes]
    p2p_s: float


class Coster(Jobs):
    """Costs of the layouts of one run."""

    def __init__(self, run: Run, devices: int) -> None:
        super().__init__(run, devices)
        self.cuts, self.walks = Cuts(run), Walks(run)
        self._chains: dict[object, Chain] = {}
        self._links: dict[object, Links] = {}
        self._nearest: dict[object, Links] = {}
        self._kernels: dict[object, Kernels] = {}
        self._alike: dict[Alike, Kernels] = {}
        self._parts: dict[object, Parts] = {}
        self._sent: dict[object, PassTimes] = {}
        self._nearest_parts: dict[Mesh, Parts] = {}
        self._cuts: dict[Mesh, dict[int, Cut]] = {}
        self._alike_cuts: dict[object, dict[int, Cut]] = {}
        self._costs: dict[object, dict[object, PartCost]] = {}
        self._pipelines: dict[object, _Pipeline] = {}
        self._stage_states: dict[object, StageState] = {}

    def exact_s(self, choice: Choice) -> float:
        """Seconds per step, as `estimate_layout` says."""
        return self._step_s(choice, is_exact=True)

    def shortest_s(self, choice: Choice) -> float:
        """No less than this: the schedule's bound, and the exact end of the step."""
        return self._step_s(choice, is_exact=choice.schedule not in SCHEDULES)

    def _step_s(self, choice: Choice, is_exact: bool) -> float:
        job, chain, splits = self.job(choice), self.chain_of(choice), self.splits_backward(choice)
        links, mesh = self.links_of(choice), mesh_of(choice)
        cut, late = self.cut(mesh, chain), has_late_weights(choice.schedule)
        # Shardings of one step and orders on the same links have a pipeline in common.
        key: tuple[object, ...] = (
            mesh, choice.pp, choice.dp, choice.schedule, choice.vpp, choice.num_microbatches,
            links.tp, links.cp, links.ep, links.pp, choice.offload,
        )  # fmt: skip
        if choice.zero_stage == 3 or choice.offload != "none":
            key += (choice.engine, choice.zero_stage, links)
        known = self._pipelines.get(key)
        if known is None:
            of_kinds = self.costs(job, cut, late, links)
            kinds = part_times(job, of_kinds, splits, links)
            known = self._pipelines[key] = _Pipeline(of_kinds, kinds, free_p2p_s(job, links))
        of_kinds, kinds, p2p_s = known
        measure = self.walks.exact_s if is_exact else self.walks.bound_s
        pipeline_s = measure(choice.schedule, cut, choice.num_microbatches, kinds, p2p_s)
        ends = []
        for stage in cut.ends:
            costs = [of_kinds[cut.kinds[part]] for part in chain.parts_of(stage)]
            ends.append((cut.stages[stage], self.state(job, cut.stages[stage], links), costs))
        tail_s, optimizer_s = end_of_step(job, ends, links)
        return pipeline_s + tail_s + optimizer_s

    def splits_backward(self, choice: Choice) -> bool:
        """Whether the schedule has W actions."""
        if choice.schedule in SCHEDULES:
            return SCHEDULES[choice.schedule].splits_backward
        return has_weight_actions(plan_file(self.run).ranks)

    # What is kept.
    def parts(self, mesh: Mesh, splits: bool, links: Links) -> Parts:
        """Times of blocks and of the model's ends over these links."""
        # Only what of tp hides beside products knows whether backward is split.
        splits = splits and mesh.tp > 1 and bool(self.run.parallelism.overlap_tp)
        key = (mesh, splits, links.tp, links.cp, links.ep)
        if key not in self._parts:
            job = self.mesh_job(mesh, splits)
            self._parts[key] = estimate_parts(job, links, self.kernels(mesh), self._sent)
        return self._parts[key]

    def kernels(self, mesh: Mesh) -> Kernels:
        """Whatever is recomputed."""
        kernels = self._kernels.get(mesh[:5])
        if kernels is None:
            alike = self.alike(mesh)
            known = self._alike.get(alike) if alike else None
            kernels = self._kernels[mesh[:5]] = known or self._list_kernels(mesh, alike)
        return kernels

    def _list_kernels(self, mesh: Mesh, alike: Alike | None) -> Kernels:
        job, has_experts = self.mesh_job(mesh, False), self.run.model.experts is not None
        if alike is None:
            return list_kernels(job)
        plain = alike._replace(ep=0)
        beside = self._alike.get(plain) if has_experts else None
        kernels = list_kernels(job, beside)
        if has_experts:
            self._alike[plain] = kernels
        self._alike[alike] = kernels
        return kernels

    def costs(self, job: Job, cut: Cut, splits: bool, links: Links) -> list[PartCost]:
        """Of one part of every kind."""
        layout = job.layout
        mesh = _mesh_of_layout(layout)
        key: tuple[object, ...] = (mesh, splits, links.tp, links.cp, links.ep, layout.offload)
        if layout.zero_stage == 3:
            key += (layout.engine, links)
        known = self._costs.setdefault(key, {})
        found = []
        for piece, kind in zip(cut.pieces, cut.piece_kinds, strict=True):
            if kind not in known:
                known[kind] = part_cost(job, piece, self.parts(mesh, splits, links), links)
            found.append(known[kind])
        return found

    def state(self, job: Job, stage: Stage, links: Links) -> StageState:
        """What one rank of a stage holds, and its traffic over these links."""
        layout = job.layout
        key = (
            layout.tp, layout.cp, layout.ep, layout.dp, layout.engine, layout.zero_stage,
            layout.offload, stage.num_layers, dense_layers_of(job.model, stage), stage.is_first,
            stage.is_last, links[4:],
        )  # fmt: skip
        found = self._stage_states.get(key)
        if found is None:
            found = self._stage_states[key] = stage_state(job, stage, links)
        return found

    def cut(self, mesh: Mesh, chain: Chain) -> Cut:
        """As `plan_stages` splits the model."""
        known, number = self.known_cuts(mesh), id(chain)
        cut = known.get(number)  # chains are kept, so that a number is one chain's alone
        if cut is None:
            # Communication has no part in a split: all links have the same.
            cut = known[number] = self.cuts.of(chain, self.nearest_parts(mesh))
        return cut

    def known_cuts(self, mesh: Mesh) -> dict[int, Cut]:
        """Those that have been asked for, by the number of their chain."""
        known = self._cuts.get(mesh)
        if known is None:
            # Communication has no part in a split, so that meshes that compute alike share it.
            block, _, embedding, head = self.nearest_parts(mesh)
            costs = block.total_s, embedding.total_s, head.total_s
            known = self._cuts[mesh] = self._alike_cuts.setdefault(costs, {})
        return known

    def nearest_parts(self, mesh: Mesh) -> Parts:
        """Times over the nearest links, backward whole."""
        if mesh not in self._nearest_parts:
            self._nearest_parts[mesh] = self.parts(mesh, False, self.nearest(mesh))
        return self._nearest_parts[mesh]

    def chain(self, name: str, pp: int, vpp: int) -> Chain:
        """Where the parts of the model sit; equal ones are one object."""
        key = (name, pp, vpp)
        chain = self._chains.get(key)
        if chain is None:
            chain = plan_file(self.run).chain if is_schedule_file(name) else named_chain(*key)
            alike = (chain.num_stages, chain.num_chunks, chain.placement)
            chain = self._chains[key] = self._chains.setdefault(alike, chain)
        return chain

    def links_of(self, choice: Choice) -> Links:
        """Of its mesh in its order of ranks."""
        degrees = (choice.tp, choice.cp, choice.ep, choice.dp, choice.pp)
        return self.place(degrees, choice.order)

    def links(self, job: Job) -> Links:
        """The same of a job."""
        layout = job.layout
        return self.place((layout.tp, layout.cp, layout.ep, layout.dp, layout.pp), layout.order)

    def place(self, degrees: tuple[int, int, int, int, int], order: tuple[str, ...]) -> Links:
        """Of (tp, cp, ep, dp, pp) in an order of ranks."""
        key = (degrees, order)
        found = self._links.get(key)
        if found is None:
            hardware, shard_size = self.run.hardware, self.run.parallelism.shard_size
            assert hardware.gpus_per_node is not None
            found = place_links(hardware, hardware.gpus_per_node, degrees, order, shard_size)
            self._links[key] = found
        return found

    def nearest(self, mesh: Mesh) -> Links:
        """tp, cp and ep on the quickest links that any order of ranks gives them."""
        key = (mesh.tp, mesh.cp, mesh.ep, mesh.split, mesh.micro)
        if key not in self._nearest:
            job = self.mesh_job(mesh, False)
            hardware, per_node = job.hardware, job.layout.gpus_per_node
            self._nearest[key] = self.links(job)._replace(
                tp=quickest_tp(job),
                cp=stride_link(hardware, per_node, 1, mesh.cp),
                ep=stride_link(hardware, per_node, 1, mesh.ep),
            )
        return self._nearest[key]

    def chain_of(self, choice: Choice) -> Chain:
        """The same of a whole layout."""
        return self.chain(choice.schedule, choice.pp, choice.vpp)


def has_late_weights(schedule: str) -> bool:
    """Whether a block's times are those of a split backward; of a file it is not known."""
    return schedule not in SCHEDULES or SCHEDULES[schedule].splits_backward


def _mesh_of_layout(layout: Layout) -> Mesh:
    return Mesh(
        layout.tp, layout.cp, layout.ep, layout.sequence_parallel, layout.micro_batch_size,
        layout.recompute,
    )  # fmt: skip
