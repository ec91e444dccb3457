"""Jobs of the layouts of a search, kept: what a prediction needs of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from launcher.config.schema import Run
from launcher.plan.execution import Execution, Job, runtime_execution, runtime_job
from launcher.plan.records import Layout
from launcher.plan.search_choice import ORDER, Choice


class Mesh(NamedTuple):
    """What decides the time of a block."""

    tp: int
    cp: int
    ep: int
    split: bool
    """Sequence parallelism."""
    micro: int
    recompute: str


class Alike(NamedTuple):
    """What meshes that compute and keep the same have in common: a rank's kernels know how many
    tokens it has, not of how many samples they are.
    """

    tp: int
    ep: int
    split: bool
    tokens: int


class Jobs:
    """Of one run."""

    def __init__(self, run: Run, devices: int) -> None:
        self.run, self.devices = run, devices
        self._jobs: dict[object, Job] = {}
        self._mesh_jobs: dict[object, Job] = {}
        self._executions: dict[object, Execution] = {}

    def alike(self, mesh: Mesh) -> Alike | None:
        """None where samples count."""
        sequence_length = self.run.train.sequence_length
        assert sequence_length is not None
        length, rest = divmod(sequence_length, mesh.cp)
        if rest or self.run.model.encoder:
            return None
        return Alike(mesh.tp, mesh.ep, mesh.split, mesh.micro * length)

    def mesh_job(self, mesh: Mesh, splits: bool) -> Job:
        """Of a mesh alone: no pipeline."""
        key = (mesh, splits)
        if key not in self._mesh_jobs:
            choice = Choice(
                tp=mesh.tp, cp=mesh.cp, ep=mesh.ep, pp=1, vpp=1,
                schedule="zb_h1" if splits else "1f1b", recompute=mesh.recompute,
                engine="deepspeed", zero_stage=1, offload="none", sequence_parallel=mesh.split,
                order=ORDER, micro_batch_size=mesh.micro, num_microbatches=1,
                dp=max(1, self.devices // (mesh.tp * mesh.cp)),
            )  # fmt: skip
            self._mesh_jobs[key] = self._make_job(choice)
        return self._mesh_jobs[key]

    def job(self, choice: Choice) -> Job:
        """As the plan makes it, in some order of ranks: only links depend on that."""
        key = (
            mesh_of(choice), choice.pp, choice.dp, choice.vpp, choice.schedule, choice.engine,
            choice.zero_stage, choice.offload, choice.num_microbatches,
        )  # fmt: skip
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = self._make_job(choice)
        return job

    def _make_job(self, choice: Choice) -> Job:
        layout = self.layout(choice)
        # Of degrees, microbatches and schedule a rank's software knows nothing.
        key = (
            layout.recompute, layout.sequence_parallel, layout.overlap_tp, layout.engine,
            layout.zero_stage, layout.offload,
        )  # fmt: skip
        if key not in self._executions:
            self._executions[key] = runtime_execution(self.run, layout)
        return runtime_job(self.run, layout, self._executions[key])

    def changed_job(self, job: Job, **values: Any) -> Job:
        """With something else in how it is executed."""
        key = (id(job.execution), *values.items())  # executions are kept: a number is one's alone
        execution = self._executions.get(key)
        if execution is None:
            execution = self._executions[key] = replace(job.execution, **values)
        return Job(
            model=job.model, hardware=job.hardware, layout=job.layout, execution=execution,
            train_steps=job.train_steps,
        )  # fmt: skip

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
            recompute_every=degrees.recompute_every, offload=choice.offload,
        )  # fmt: skip


def mesh_of(choice: Choice) -> Mesh:
    """The part of a choice that decides the time of its blocks."""
    return Mesh(
        choice.tp, choice.cp, choice.ep, choice.sequence_parallel, choice.micro_batch_size,
        choice.recompute,
    )  # fmt: skip
