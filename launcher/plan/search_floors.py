"""What layouts take at least, in seconds per sample, key by key as they are decided.

Every bound holds for all that can still be decided: a test compares searches that prune by them
with every layout tried.
"""

from __future__ import annotations

from launcher.plan.collectives import Links, hop_s
from launcher.plan.schedule import SCHEDULES
from launcher.plan.search_bounds import Quad, Row, UnitTimes, quick_rows, quick_s
from launcher.plan.search_cost import Coster
from launcher.plan.search_cuts import Cut
from launcher.plan.search_jobs import Mesh
from launcher.plan.search_memory import Sharding
from launcher.plan.search_sharded import Pieces, Shares, waiting_shares, with_waits
from launcher.plan.search_stages import Stages
from launcher.plan.search_state_floors import NEAR_AND_FAR, StateFloors
from launcher.plan.stage_time import unit_times


class Floors(StateFloors):
    """Bounds of one run's layouts."""

    def __init__(self, coster: Coster) -> None:
        super().__init__(coster)
        self._units: dict[object, UnitTimes] = {}
        self._rows: dict[object, list[Row]] = {}
        self._p2p: dict[object, float] = {}
        self._shares: dict[object, Shares] = {}

    def times(self, stages: Stages, late: bool, links: Links, p2p_s: float) -> Row:
        """What `pipeline_s` counts; `late`: of a split backward."""
        return self._unit_times(stages.mesh, late, links).row(p2p_s)

    def sharded_times(
        self,
        stages: Stages,
        sharding: Sharding,
        late: bool,
        links: Links | None,
        p2p_s: float,
        pieces: Pieces,
    ) -> Row:
        """With what these parts wait for sharded weights; without links, over the nearest."""
        coster, mesh = self.coster, stages.mesh
        state_links = links and links[4:]
        key = (stages[:4], sharding, state_links)
        shares = self._shares.get(key)
        if shares is None:
            over = [links] if links else self.placings(stages)
            shares = waiting_shares(coster, stages, sharding, over, pieces)
            self._shares[key] = shares
        units = self._unit_times(mesh, late, links or coster.nearest(mesh))
        return with_waits(units, coster.nearest_parts(mesh), shares).row(p2p_s)

    def pipeline_s(self, stages: Stages, name: str, late: bool, cut: Cut, times: Row) -> float:
        """The schedule's bound, whatever the sharding."""
        if name not in SCHEDULES:
            return 0.0
        mesh, _, dp, count, _ = stages
        key = (name, id(cut), count)  # cuts are kept, so that a number is one cut's alone
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = quick_rows(name, cut, count, late)
        return quick_s(rows, times) / (mesh.micro * count * dp)

    def p2p_s(self, stages: Stages, links: Links) -> float:
        """Of a transfer to the next stage that leaves both free to compute."""
        if stages.pp == 1:
            return 0.0
        key = (stages.mesh[:5], links.pp)
        found = self._p2p.get(key)
        if found is None:
            job = self.coster.mesh_job(stages.mesh, False)
            found = hop_s(job, links) if job.execution.overlap_p2p else 0.0
            self._p2p[key] = found
        return found

    def quickest_p2p_s(self, stages: Stages) -> float:
        """In any order of ranks: stages on one node where that can be, or across nodes."""
        if stages.pp == 1:
            return 0.0
        mesh, pp, dp, _, _ = stages
        degrees, place = (mesh.tp, mesh.cp, mesh.ep, dp, pp), self.coster.place
        return min([self.p2p_s(stages, place(degrees, order)) for order in NEAR_AND_FAR])

    def _unit_times(self, mesh: Mesh, late: bool, links: Links) -> UnitTimes:
        """Of a block, of one without experts, and of the model's ends: their sums are a part's
        times, as `part_cost` has them where nothing but blocks and ends takes time. What sharded
        weights wait for is in the sharding's floor.
        """
        key = (mesh, late, links[:3])
        found = self._units.get(key)
        if found is not None:
            return found
        parts = self.coster.parts(mesh, late, links)
        job = self.coster.mesh_job(mesh, late)
        forward, backward, weight = unit_times(job, parts, links)
        if late:
            found = UnitTimes(forward, backward, weight)
        else:
            found = UnitTimes(forward, _added(backward, weight), (0.0, 0.0, 0.0, 0.0))
        self._units[key] = found
        return found


def _added(one: Quad, other: Quad) -> Quad:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]
