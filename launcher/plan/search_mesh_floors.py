"""What layouts take at least before their shardings and schedules are known, per sample."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from launcher.plan.collectives import SLOWDOWN
from launcher.plan.search_cost import Coster
from launcher.plan.search_jobs import Mesh
from launcher.plan.stage_time import BlockTimes, Parts, estimate_parts
from launcher.plan.tensor_traffic import runtime_tp_times


class _Passes(NamedTuple):
    """Seconds of one microbatch, over the nearest links."""

    whole_s: float
    """All parts of the model."""
    block_s: float
    """A block's passes, of the quicker kind."""
    alone_s: float
    """All parts without weight gradients, which a split backward leaves for later. It hides no
    less of what is sent without them."""


class MeshFloors:
    """Bounds that know of degrees, microbatch and recomputation alone."""

    def __init__(self, coster: Coster) -> None:
        self.coster = coster
        self.model = coster.run.model
        self._num_dense = self.model.num_plain
        self._batch = coster.run.train.global_batch_size
        self._passes_s: dict[Mesh, _Passes] = {}
        self._blocks_s: dict[Mesh, _Passes] = {}
        self._timed: dict[Mesh, dict[int, Mesh]] = {}
        gpu = coster.run.hardware.gpu
        self.overhead_s = gpu.step_overhead_s if gpu else 0.0

    def block_s(self, mesh: Mesh) -> float:
        """`mesh_s` of a microbatch that others divide: none of them takes less time per sample."""
        return self._block(mesh).whole_s * mesh.tp * mesh.cp / (mesh.micro * self.coster.devices)

    def family_s(self, mesh: Mesh) -> float:
        """No more than any block that cuts a sample over cp as well, or takes fewer of them.

        A rank's kernels and what it sends over tp and ep know its tokens, not of how many samples
        they are; what it sends over cp is left out.
        """
        return self.block_s(mesh) + (self.overhead_s / self._batch if self._batch else 0.0)

    def size_s(self, block: Mesh, micro: int, batches: Collection[tuple[int, int, int]]) -> float:
        """`batches_s` at least, of a microbatch that the block's is a multiple of."""
        alone_s = self._block(block).alone_s
        least_s = min([alone_s / (count * dp) for _, dp, count in batches]) / block.micro
        return max(self.block_s(block), least_s) + self.end_s(micro, batches)

    def micro_s(self, block: Mesh, mesh: Mesh, batches: Collection[tuple[int, int, int]]) -> float:
        """`batches_s` of a block with one of its microbatches, kept for `multiple_s`."""
        self._timed.setdefault(block, {})[mesh.micro] = mesh
        return self.batches_s(mesh, batches)

    def multiple_s(
        self, block: Mesh, micro: int, batches: Collection[tuple[int, int, int]]
    ) -> float:
        """`batches_s` at least, by the least multiple of a microbatch that is timed already."""
        timed = self._timed.get(block, {})
        larger = min([one for one in timed if one % micro == 0], default=micro)
        if larger == micro:  # its own time is known, or nothing is
            return 0.0
        return self.block_s(timed[larger]) + self.end_s(micro, batches)

    def _block(self, mesh: Mesh) -> _Passes:
        found = self._blocks_s.get(mesh)
        if found is None:
            found = self._blocks_s[mesh] = self._least_passes(mesh)
        return found

    def _least_passes(self, mesh: Mesh) -> _Passes:
        """No less for a microbatch that divides this one, in proportion.

        A kernel or a collective of twice the size takes at most twice as long: none of their
        models starts below zero. What of tp hides beside products does not grow so.
        """
        run, layers = self.coster.run, self.model.num_layers
        if (run.hardware.gpu and run.hardware.gpu.kernels) or self.model.encoder:
            return _Passes(0.0, 0.0, 0.0)
        if not run.parallelism.overlap_tp or mesh.tp == 1:
            return self._passes(mesh)
        coster, nearest = self.coster, self.coster.nearest(mesh)
        alone = coster.changed_job(coster.mesh_job(mesh, False), overlap_tp=False)
        sent = runtime_tp_times(alone, nearest, 1, 0, 1.0 if mesh.recompute == "full" else 0.0)
        # A collective beside a product costs most of all less where SLOWDOWN has used all of it.
        hidden_s = (sent.forward_s + sent.backward_s) / (1 + SLOWDOWN)
        if self.model.experts is None:  # and no more than three times the products of a pass
            smallest = coster.kernels(mesh._replace(micro=1)).block
            hidden_s = min(hidden_s, 3 * mesh.micro * smallest.times.forward_s)
        parts = estimate_parts(alone, nearest, coster.kernels(mesh))
        whole_s = max(0.0, self._sum_s(parts) - layers * hidden_s)
        return _Passes(whole_s, 0.0, max(0.0, whole_s - self._weights_s(parts)))

    def mesh_s(self, mesh: Mesh) -> float:
        """All work of a sample, shared out evenly: no pipeline, no wait for it, no tail."""
        devices = self.coster.devices
        return self._passes(mesh).whole_s * mesh.tp * mesh.cp / (mesh.micro * devices)

    def batches_s(self, mesh: Mesh, batches: Collection[tuple[int, int, int]]) -> float:
        """`mesh_s`, and of the best of some (pp, dp, number of microbatches); with its end."""
        return self.passes_s(mesh, batches) + self.end_s(mesh.micro, batches)

    def passes_s(self, mesh: Mesh, batches: Collection[tuple[int, int, int]]) -> float:
        """Without that end: some stage has the average of the blocks, rounded up, and all
        microbatches pass it; one of them passes all parts there and back, one after the other,
        whatever the schedule.
        """
        layers, (whole_s, block_s, alone_s) = self.model.num_layers, self._passes(mesh)
        least_s = min([
            (busy_s if (busy_s := -(-layers // pp) * block_s) * count > alone_s
             else alone_s / count) / dp
            for pp, dp, count in batches
        ])  # fmt: skip
        return max(whole_s * mesh.tp * mesh.cp / self.coster.devices, least_s) / mesh.micro

    def end_s(self, micro: int, batches: Collection[tuple[int, int, int]]) -> float:
        """What a step ends with, whatever its layout, shared out over the most samples of one."""
        if self._batch:  # of all layouts the same
            return self.overhead_s / self._batch
        return self.overhead_s / (micro * max([dp * count for _, dp, count in batches]))

    def _passes(self, mesh: Mesh) -> _Passes:
        found = self._passes_s.get(mesh)
        if found is None:
            parts = self.coster.nearest_parts(mesh)
            whole_s, block_s = self._sum_s(parts), _pass_s(parts.block)
            if self._num_dense:
                block_s = min(block_s, _pass_s(parts.dense))
            found = _Passes(whole_s, block_s, whole_s - self._weights_s(parts))
            self._passes_s[mesh] = found
        return found

    def _sum_s(self, parts: Parts) -> float:
        dense = self._num_dense
        seconds = (self.model.num_layers - dense) * _pass_s(parts.block)
        if dense:
            seconds += dense * _pass_s(parts.dense)
        return seconds + _pass_s(parts.embedding) + _pass_s(parts.head)

    def _weights_s(self, parts: Parts) -> float:
        """Of `_sum_s`, the weight gradients."""
        dense = self._num_dense
        blocks_s = (self.model.num_layers - dense) * parts.block.weight_s
        blocks_s += dense * parts.dense.weight_s
        return blocks_s + parts.embedding.weight_s + parts.head.weight_s


def _pass_s(times: BlockTimes) -> float:
    forward_s, input_s, weight_s, wait_forward_s, wait_backward_s = times
    return forward_s + input_s + weight_s + wait_forward_s + wait_backward_s
