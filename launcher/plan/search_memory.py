"""Whether layouts of a search fit: by bounds as soon as a few keys are known, and exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.config.schema import is_schedule_file
from launcher.plan.activations import block_kept_bytes, dense_difference_bytes
from launcher.plan.execution import Job, shards_of
from launcher.plan.memory import (
    EXPANDABLE_SHARE,
    HEAP_SHARE,
    in_flight_bytes,
    pass_buffers,
    rank_bytes,
    usable_bytes,
)
from launcher.plan.memory_held import Held, held_bytes
from launcher.plan.memory_pipeline import transfer_bytes
from launcher.plan.records import Stage
from launcher.plan.schedule_choice import plan_peaks
from launcher.plan.schedule_peaks import peaks_of
from launcher.plan.search_choice import ORDER, Choice
from launcher.plan.search_cost import Coster
from launcher.plan.search_cuts import Cut
from launcher.plan.search_jobs import Alike, Mesh, mesh_of
from launcher.plan.temporaries import backward_temporary_bytes, recomputed_bytes

Sharding = tuple[str, int, str]
"""engine, zero_stage, offload"""

ROUNDING_BYTES = 2**20
"""More than what a rank's whole numbers of elements can be short of their exact share."""

NO_LIMIT = 2**80
"""Bytes that everything fits into."""


class Kept(NamedTuple):
    """Bytes that one microbatch costs on a rank."""

    block: int
    """Least that a block keeps."""
    passing: int
    """Least that a backward pass needs besides."""
    usual: int
    """Least that a block keeps that has experts where any have."""


Size = tuple[int, int, bool, bool]
"""Of a stage, as `Cut.sizes` has it."""


class Crowd(NamedTuple):
    """What a stage keeps."""

    size: Size
    microbatches: float
    """Chunks count in part."""


class Memory:
    """Memory of the layouts of one run."""

    def __init__(self, coster: Coster, shardings: Sequence[Sharding]) -> None:
        self.coster, self._shardings = coster, shardings
        run = coster.run
        assert run.hardware.gpu is not None
        self.usable_bytes = usable_bytes(run.hardware.gpu)
        self._gpu = run.hardware.gpu
        self._context = self._gpu.context_bytes
        self._reserve = HEAP_SHARE if run.hardware.device == "cpu" else EXPANDABLE_SHARE
        self._is_file = run.parallelism.schedule_lines is not None
        self._model = run.model
        self._averages: dict[int, int] = {}
        self._kept: dict[Mesh, Kept] = {}
        self._blocks_kept: dict[object, tuple[int, int, int]] = {}
        # Ulysses keeps more over cp, and masks of documents are of whole sequences.
        self._counts_samples = (
            run.parallelism.cp_mode == "ulysses" or run.data.packing == "documents"
        )
        self._whole: dict[object, int] = {}
        self._states: dict[object, dict[Sharding, int]] = {}
        self._gathered: dict[object, int] = {}
        self._split: dict[object, int] = {}
        self._jobs: dict[object, Job] = {}
        self._held: dict[object, Held] = {}
        self._activations: dict[object, int] = {}
        self._passing: dict[object, int] = {}

    def least_bytes(self, mesh: Mesh, pp: int, dp: int, sharding: Sharding) -> int:
        """Of some rank, whatever the schedule: it has the average of the blocks, rounded up, and
        keeps one microbatch.
        """
        return self.states(mesh, pp, dp)[sharding] + self._context + self._alive(mesh, pp)

    def first_bytes(self, mesh: Mesh, pp: int, dp: int, sharding: Sharding, chunks: int) -> int:
        """The same of the first of several stages, which keeps so many chunks of microbatches, each
        of a block at least.
        """
        block, passing, _ = self.kept(mesh)
        alive = chunks * block + passing
        plain = self._model.experts.count_plain(0, 1) if self._model.experts else 0
        state = self.states(mesh, pp, dp, (1, plain, True, False))[sharding]
        return state + self._context + alive + int(self._reserve * alive)

    def least_state(self, mesh: Mesh, batches: Sequence[tuple[int, int, int]]) -> int:
        """Of these (pp, dp, number of microbatches) and all shardings; activations aside."""
        degrees = dict.fromkeys((pp, dp) for pp, dp, _ in batches)
        return self._context + min([min(self.states(mesh, *one).values()) for one in degrees])

    def average_bytes(self) -> int:
        """Of state, where all devices share it: some rank has no less, whatever the layout."""
        mesh, model = Mesh(1, 1, 1, False, 1, "none"), self.coster.run.model
        whole = _stage(((0, model.num_layers),), True, True)
        states = [held_bytes(self._job(mesh, 1, 1, one), whole).state for one in self._shardings]
        return self._context + min(states) // self.coster.devices - ROUNDING_BYTES

    def split_bytes(self, mesh: Mesh, pp: int, dp: int, sharding: Sharding, cut: Cut) -> int:
        """Of the fullest stage's state, activations aside."""
        key = (mesh.tp, mesh.ep, pp, dp * mesh.cp, sharding, cut.sizes)
        state = self._split.get(key)
        if state is None:
            job = self._job(mesh, pp, dp, sharding)
            states = [held_bytes(job, self._sized(size)).state for size in set(cut.sizes)]
            state = self._split[key] = max(states) + self._gathered_bytes(job)
        return self._context + state

    def _sized(self, size: Size) -> Stage:
        """A stage with such blocks, wherever these are."""
        layers, plain, is_first, is_last = size
        experts = self._model.experts
        if experts is None or experts.every == 1:
            behind = self._model.num_plain - plain
            return _stage(((behind, behind + layers),), is_first, is_last)
        usual = self._model.usual_block
        blocks = plain * ((0, 1),) + (layers - plain) * ((usual, usual + 1),)
        return _stage(blocks, is_first, is_last)

    @property
    def most_state_bytes(self) -> int:
        """Weights, gradients and optimizer state beside which nothing else is."""
        return self.usable_bytes - self._context

    def room(self, mesh: Mesh, pp: int) -> int:
        """What `least_bytes` leaves to a rank's weights, gradients and optimizer state."""
        return self.usable_bytes - self._context - self._alive(mesh, pp)

    def states(self, mesh: Mesh, pp: int, dp: int, size: Size | None = None) -> dict[Sharding, int]:
        """Least bytes of weights, gradients and optimizer state and of what a pass gathers of them,
        by sharding; of a stage of this size, or of the average of all stages.
        """
        # Of dp and cp only the product counts: together they are the replicas.
        key = (mesh.tp, mesh.ep, pp, dp * mesh.cp, size)
        states = self._states.get(key)
        if states is None:
            plain = self._model.num_plain if pp == 1 else 0
            stage = self._sized(size or (self._average(pp), plain, pp == 1, pp == 1))
            states = self._states[key] = {}
            for sharding in self._shardings:
                job = self._job(mesh, pp, dp, sharding)
                states[sharding] = held_bytes(job, stage).state + self._gathered_bytes(job)
        return states

    def _gathered_bytes(self, job: Job) -> int:
        """Of weights, for a pass. On a stage without an end what tokens and masks take is added to
        that; other stages take no less.
        """
        layout = job.layout
        replicas = shards_of(job) if layout.engine == "fsdp2" else 1
        key = (layout.tp, layout.ep, layout.engine, layout.zero_stage == 3, replicas)
        gathered = self._gathered.get(key)
        if gathered is None:
            job = self.coster.changed_job(job, window_masks=False)
            passing = pass_buffers(job, _stage(((0, 1),), False, False))
            passing -= backward_temporary_bytes(job)
            gathered = self._gathered[key] = passing + int(self._reserve * passing)
        return gathered

    def _average(self, pp: int) -> int:
        """Blocks that some stage has at least: where some have no experts, blocks with experts, so
        that its state is known too.
        """
        if pp not in self._averages:
            plain = self._model.num_plain if pp > 1 else 0
            self._averages[pp] = -(-(self._model.num_layers - plain) // pp)
        return self._averages[pp]

    def first_peak(self, name: str, pp: int, vpp: int, count: int) -> int | None:
        """Chunks of microbatches that the first stage keeps; None where no bound counts them."""
        return None if pp == 1 or self._is_file else peaks_of(name, pp, count, vpp)[0]

    def room_of(self, kept: Kept, crowd: Crowd) -> int:
        """The same as `room`, of a stage that keeps so much."""
        (layers, plain, _, _), microbatches = crowd
        blocks = (layers - plain) * kept.usual + plain * kept.block
        alive = int(microbatches * blocks) + kept.passing
        return self.usable_bytes - self._context - alive - int(self._reserve * alive)

    def bytes_of(self, mesh: Mesh, pp: int, dp: int, sharding: Sharding, crowd: Crowd) -> int:
        """Least of a stage that keeps so much."""
        room = self.room_of(self.kept(mesh), crowd)
        return self.states(mesh, pp, dp, crowd.size)[sharding] + self.usable_bytes - room

    def _alive(self, mesh: Mesh, pp: int) -> int:
        block, passing, _ = self.kept(mesh)
        alive = self._kept_bytes(mesh, pp, block) + passing
        return alive + int(self._reserve * alive)

    def _kept_bytes(self, mesh: Mesh, pp: int, block: int) -> int:
        """Of one microbatch, on a rank with the average of the blocks."""
        layers = self._average(pp)
        if pp == 1:
            return self._whole_bytes(mesh, layers)
        return (1 if self._is_file else layers) * block

    def kept(self, mesh: Mesh) -> Kept:
        """Per block and microbatch."""
        found = self._kept.get(mesh)
        if found is None:
            job, alike = self.coster.mesh_job(mesh, False), self._alike(mesh)
            known = self._blocks_kept.get(alike) if alike else None
            if known is None:
                known = (*_block_kept(job), recomputed_bytes(job))
                if alike:
                    self._blocks_kept[alike] = known
            block, usual, again = known
            passing = backward_temporary_bytes(job, again)
            found = self._kept[mesh] = Kept(block, passing, usual)
        return found

    def _alike(self, mesh: Mesh) -> tuple[Alike, str] | None:
        """Of meshes that keep the same of a block."""
        if self._counts_samples:
            return None
        alike = self.coster.alike(mesh)
        return alike and (alike, mesh.recompute)

    def _whole_bytes(self, mesh: Mesh, layers: int) -> int:
        """One microbatch of the whole model."""
        key = self._alike(mesh) or mesh
        found = self._whole.get(key)
        if found is None:
            job = self.coster.mesh_job(mesh, False)
            found = self._whole[key] = in_flight_bytes(job, _stage(((0, layers),), True, True), 1)
        return found

    def _job(self, mesh: Mesh, pp: int, dp: int, sharding: Sharding) -> Job:
        """Of these degrees: state knows nothing of microbatches, nor which replicas are of cp."""
        key = (mesh.tp, mesh.ep, pp, dp * mesh.cp, sharding)
        if key not in self._jobs:
            choice = _choice(mesh._replace(cp=1), pp, dp * mesh.cp, sharding)
            self._jobs[key] = self.coster.job(choice)
        return self._jobs[key]

    def peak_bytes(self, choice: Choice, enough: int = NO_LIMIT) -> int:
        """Of the fullest rank, as `estimate_layout` says; or of one with more than `enough`."""
        coster, mesh, peaks = self.coster, mesh_of(choice), self._peaks(choice)
        job = coster.job(choice)
        if choice.pp == choice.vpp == 1:  # there is nothing to cut
            whole = _stage(((0, self._model.num_layers),), True, True)
            like, all_of_it = self._alike(mesh) or mesh, (whole.num_layers, True, True)
            return self._rank_bytes(mesh, like, job, all_of_it, whole, peaks[0])
        cut = coster.cut(mesh, coster.chain_of(choice))
        # Of the stages of each kind, the one that keeps most.
        fullest: dict[Size, tuple[int, int]] = {}
        for stage, (size, peak) in enumerate(zip(cut.sizes, peaks, strict=True)):
            if size not in fullest or fullest[size][0] < peak:
                fullest[size] = peak, stage
        most, like = 0, self._alike(mesh) or mesh
        # What is too much mostly is so on stages in the middle: the first one has been looked at.
        for kind in sorted(fullest, key=_is_end):
            peak, stage = fullest[kind]
            most = max(most, self._rank_bytes(mesh, like, job, kind, cut.stages[stage], peak))
            if most > enough:
                break
        return most

    def _rank_bytes(
        self, mesh: Mesh, like: object, job: Job, kind: object, stage: Stage, peak: int
    ) -> int:
        """As `stage_memory` has it, part by part from what is known of like stages.

        `like`: of all meshes that keep the same.
        """
        layout = job.layout
        # What an engine does with gradients of a single pass is a special case.
        sharding = (
            layout.engine, layout.zero_stage, layout.offload, layout.dp, layout.pp == 1,
            layout.num_microbatches * layout.vpp == 1,
        )  # fmt: skip
        degrees = (mesh.tp, mesh.cp, mesh.ep, kind, sharding)
        held = self._held.get(degrees)
        if held is None:
            held = self._held[degrees] = held_bytes(job, stage)
        key = (like, kind, layout.vpp, peak)
        activations = self._activations.get(key)
        if activations is None:
            activations = self._activations[key] = in_flight_bytes(job, stage, peak)
        # Buffers of a pass are of whole groups of weights: only FSDP2 cuts some of them over dp.
        replicas = shards_of(job) if layout.engine == "fsdp2" else 1
        passed = (mesh, kind, layout.engine, layout.zero_stage == 3, replicas, layout.pp == 1)
        passing = self._passing.get(passed)
        if passing is None:
            passing = pass_buffers(job, stage) + transfer_bytes(job, stage, peak)
            self._passing[passed] = passing
        return rank_bytes(job, stage, held, activations, passing, self._gpu)

    def fits(self, choice: Choice) -> bool:
        """As `estimate_layout` says."""
        return self.peak_bytes(choice, self.usable_bytes) <= self.usable_bytes

    def _peaks(self, choice: Choice) -> tuple[int, ...]:
        if is_schedule_file(choice.schedule):
            return plan_peaks(self.coster.run, self.coster.layout(choice))
        return peaks_of(choice.schedule, choice.pp, choice.num_microbatches, choice.vpp)


def _is_end(kind: Size) -> bool:
    return kind[2] or kind[3]


def _block_kept(job: Job) -> tuple[int, int]:
    """Least that a block keeps of one microbatch: of any kind, and of the usual one."""
    mode, share = job.execution.recompute, job.execution.recompute_share
    # The number of blocks that recompute is rounded, so take the lesser; blocks without experts may
    # keep less than those with them.
    modes = (mode, "none") if share < 1 else (mode,)
    usual = [block_kept_bytes(job, one) for one in modes]
    plain = [dense_difference_bytes(job, one) for one in modes]
    return min([kept + min(0, less) for kept, less in zip(usual, plain, strict=True)]), min(usual)


def _stage(blocks: tuple[tuple[int, int], ...], is_first: bool, is_last: bool) -> Stage:
    """Of these ranges of the model's blocks."""
    blocks = blocks or ((0, 0),)
    return Stage(
        stage=0, first_layer=blocks[0][0], end_layer=blocks[-1][1], parameters=0,
        is_first=is_first, is_last=is_last, chunks=blocks if len(blocks) > 1 else (),
    )  # fmt: skip


def _choice(mesh: Mesh, pp: int, dp: int, sharding: Sharding) -> Choice:
    """In the plainest schedule, with one microbatch."""
    engine, zero_stage, offload = sharding
    return Choice(
        tp=mesh.tp, cp=mesh.cp, ep=mesh.ep, pp=pp, vpp=1, schedule="1f1b",
        recompute=mesh.recompute, engine=engine, zero_stage=zero_stage, offload=offload,
        sequence_parallel=mesh.split, order=ORDER, micro_batch_size=mesh.micro,
        num_microbatches=1, dp=dp,
    )  # fmt: skip
