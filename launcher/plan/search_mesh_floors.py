"""What layouts take at least before their shardings and schedules are known, per sample."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from launcher.plan.collectives import SLOWDOWN
from launcher.plan.search_cost import Coster, Mesh
from launcher.plan.slowdown import slowed
from launcher.plan.stage_time import BlockTimes, Parts, estimate_parts
from launcher.plan.tensor_traffic import runtime_tp_times


class MeshFloors:
    """Bounds that know of degrees, microbatch and recomputation alone."""

    def __init__(self, coster: Coster) -> None:
        self.coster = coster
        self.model = coster.run.model
        experts = self.model.experts
        self._num_dense = min(self.model.num_layers, experts.num_dense_layers) if experts else 0
        self._passes_s: dict[Mesh, tuple[float, float]] = {}
        gpu = slowed(coster.run.hardware).gpu
        self.overhead_s = gpu.step_overhead_s if gpu else 0.0

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

    def batches_s(self, mesh: Mesh, batches: Collection[tuple[int, int, int]]) -> float:
        """`mesh_s`, and of the best of some (pp, dp, number of microbatches): some stage has the
        average of the blocks, rounded up, and all microbatches pass it; one of them passes all
        parts there and back, one after the other, whatever the schedule.
        """
        layers, (block_s, alone_s) = self.model.num_layers, self._passes(mesh)
        least_s = min([
            max(-(-layers // pp) * block_s, alone_s / count) / dp for pp, dp, count in batches
        ])  # fmt: skip
        return max(self.mesh_s(mesh), least_s / mesh.micro) + self.end_s(mesh.micro, batches)

    def end_s(self, micro: int, batches: Collection[tuple[int, int, int]]) -> float:
        """What a step ends with, whatever its layout, shared out over the most samples of one."""
        return self.overhead_s / (micro * max([dp * count for _, dp, count in batches]))

    def _passes(self, mesh: Mesh) -> tuple[float, float]:
        """Of one microbatch: a block's passes, and those of all parts without weight gradients,
        which a split backward leaves for later. It hides no less of what is sent without them.
        """
        found = self._passes_s.get(mesh)
        if found is None:
            parts = self.coster.nearest_parts(mesh)
            block_s = min(_pass_s(parts.block), _pass_s(parts.dense))
            found = block_s, self._sum_s(parts) - self._weights_s(parts)
            self._passes_s[mesh] = found
        return found

    def _whole_s(self, mesh: Mesh) -> float:
        """Of one microbatch over all parts of the model."""
        return self._sum_s(self.coster.nearest_parts(mesh))

    def _sum_s(self, parts: Parts) -> float:
        dense = self._num_dense
        blocks = (self.model.num_layers - dense) * _pass_s(parts.block)
        return (
            blocks + dense * _pass_s(parts.dense) + _pass_s(parts.embedding) + _pass_s(parts.head)
        )

    def _weights_s(self, parts: Parts) -> float:
        """Of `_sum_s`, the weight gradients."""
        dense = self._num_dense
        blocks_s = (self.model.num_layers - dense) * parts.block.weight_s
        blocks_s += dense * parts.dense.weight_s
        return blocks_s + parts.embedding.weight_s + parts.head.weight_s


def _pass_s(times: BlockTimes) -> float:
    return times.total_s + times.wait_forward_s + times.wait_backward_s
