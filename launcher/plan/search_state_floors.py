"""What the state of layouts takes at least: sharded weights in passes, and the end of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.plan.collectives import Links
from launcher.plan.search_cost import Coster
from launcher.plan.search_ends import Allowed, Held, stage_tail_s
from launcher.plan.search_jobs import Mesh
from launcher.plan.search_memory import Sharding
from launcher.plan.search_mesh_floors import MeshFloors
from launcher.plan.search_stages import Stages
from launcher.plan.stage_state import sharded_waits
from launcher.plan.stage_time import BlockTimes, Parts


class Floor(NamedTuple):
    """What a sharding takes at least."""

    busy_s: float
    """Of some stage, in its pipeline."""
    end_s: float
    """Behind the pipeline."""

    def after_s(self, pipeline_s: float) -> float:
        """With a pipeline that takes at least so long without regard to the sharding."""
        busy_s = self.busy_s
        return (pipeline_s if pipeline_s > busy_s else busy_s) + self.end_s


class _Window(NamedTuple):
    """Seconds of the average stage's passes of one microbatch, beside which traffic may go."""

    forward_s: float
    backward_s: float
    pass_s: float
    """Both, and what they wait for."""
    forward_range: tuple[float, float]
    """No less and no more than such a stage takes for its forward pass, with what it waits for."""
    backward_range: tuple[float, float]
    first_forward_range: tuple[float, float]
    """The same of a stage that has the model's first end, and any number of blocks."""
    first_backward_range: tuple[float, float]


class StateFloors(MeshFloors):
    """Bounds that know of shardings, but of no schedule."""

    def __init__(self, coster: Coster, allowed: Allowed) -> None:
        super().__init__(coster, allowed)
        self._windows: dict[object, _Window] = {}

    def least_s(self, stages: Stages, shardings: Sequence[Sharding], pipeline_s: float) -> float:
        """With the sharding that costs least, behind and in a pipeline that takes so long."""
        window = self._window(stages.mesh, stages.pp, None)
        found = []
        for held in self.lightest_of(stages, shardings):
            busy_s, end_s = self._floor(stages, held, window)
            found.append((pipeline_s if pipeline_s > busy_s else busy_s) + end_s)
        return min(found)

    def sharding_s(self, stages: Stages, sharding: Sharding) -> Floor:
        """The average stage with its traffic of weights and gradients, and the end of the step."""
        window = self._window(stages.mesh, stages.pp, None)
        return self._floor(stages, self.lightest_of(stages, [sharding])[0], window)

    def placed_s(self, stages: Stages, sharding: Sharding, links: Links) -> Floor:
        """As `sharding_s`, on the links of one order of ranks."""
        window = self._window(stages.mesh, stages.pp, links)
        return self._floor(stages, self.held(stages, sharding, links), window)

    def _floor(self, stages: Stages, held: Held, window: _Window) -> Floor:
        mesh, _, dp, count, _ = stages
        samples = mesh.micro * count * dp
        if not held.traffic.per_microbatch:
            end_s = held.update_s + _tail_s(held, window) + held.embedding_s
            return Floor(busy_s=0.0, end_s=end_s / samples)
        waits = sharded_waits(
            held.traffic, held.copies_s, held.execution.overlap_dp,
            window.forward_s, window.backward_s,
        )  # fmt: skip
        busy_s = count * (window.pass_s + waits.forward_s + waits.backward_s)
        return Floor(busy_s / samples, (held.update_s + held.embedding_s) / samples)

    def _window(self, mesh: Mesh, pp: int, links: Links | None) -> _Window:
        """Of the average stage; without links, over the nearest ones."""
        key = (mesh, pp, links and links[:3])
        found = self._windows.get(key)
        if found is None:
            coster = self.coster
            parts = coster.parts(mesh, False, links) if links else coster.nearest_parts(mesh)
            found = self._windows[key] = self._make_window(parts, pp)
        return found

    def _make_window(self, parts: Parts, pp: int) -> _Window:
        """Written out flat: searches ask for thousands."""
        (block, dense, first, last), blocks = parts, self.num_blocks(pp)
        plain, every = self._num_dense, self.model.num_layers
        first_s, first_back_s = first.forward_s, _backward_s(first)
        ends_s, ends_back_s = first_s + last.forward_s, first_back_s + _backward_s(last)
        block_back_s = _backward_s(block)
        forward_s, backward_s = blocks * block.forward_s, blocks * block_back_s
        waits_s = blocks * (block.wait_forward_s + block.wait_backward_s)
        # At most the stage and both ends (an encoder is one), with everything that these wait for.
        most_s = ends_s + 2 * first.wait_forward_s
        most_back_s = ends_back_s + 2 * first.wait_backward_s
        longest_s = block.forward_s + 2 * block.wait_forward_s
        back_s = block_back_s + 2 * block.wait_backward_s
        if plain:
            longest_s = max(longest_s, dense.forward_s + 2 * dense.wait_forward_s)
            back_s = max(back_s, _backward_s(dense) + 2 * dense.wait_backward_s)
        if pp == 1:
            forward_s += plain * dense.forward_s + ends_s
            backward_s += plain * _backward_s(dense) + ends_back_s
            waits_s += plain * (dense.wait_forward_s + dense.wait_backward_s)
        layers = blocks + plain
        return _Window(
            forward_s, backward_s, forward_s + backward_s + waits_s,
            (forward_s, layers * longest_s + most_s),
            (backward_s, layers * back_s + most_back_s),
            (first_s, every * longest_s + most_s),
            (first_back_s, every * back_s + most_back_s),
        )  # fmt: skip


def _tail_s(held: Held, window: _Window) -> float:
    """Least that `tail_s_of` says of the average stage, or of the one with the first end."""
    reduce_range, gather_range = window.backward_range, window.forward_range
    found = stage_tail_s(held, held.traffic, reduce_range, gather_range)
    if held.first is None:
        return found
    reduce_range, gather_range = window.first_backward_range, window.first_forward_range
    return max(found, stage_tail_s(held, held.first, reduce_range, gather_range))


def _backward_s(times: BlockTimes) -> float:
    return times.input_s + times.weight_s
