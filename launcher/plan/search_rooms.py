"""Which schedules and shardings may go together: by the rules, and by the first stage's memory."""

from __future__ import annotations

from launcher.plan.schedule_peaks import peaks_of
from launcher.plan.search_cost import has_late_weights
from launcher.plan.search_cuts import Cut
from launcher.plan.search_legality import Legality
from launcher.plan.search_memory import Crowd, Memory, Sharding, Size
from launcher.plan.search_nodes import Bounded, Counts, Plan, Roomy
from launcher.plan.search_space import Space
from launcher.plan.search_stages import Stages, choice_in


class Rooms:
    """Of one search."""

    def __init__(self, space: Space, memory: Memory, rules: Legality, counts: Counts) -> None:
        self.space, self.memory, self.rules, self.counts = space, memory, rules, counts
        self._plans: dict[tuple[int, int], list[Plan]] = {}
        self._crowds: dict[tuple[int, int], tuple[Crowd, ...]] = {}
        self._allowed: dict[object, list[Sharding]] = {}
        self._allowed_pipelines: dict[object, bool] = {}

    def of_stages(self, stages: Stages) -> Roomy:
        """Schedules and shardings that may have room together on the first stage, and on the one
        behind it that keeps most.
        """
        mesh, pp, dp, count, _ = stages
        allowed, plans = self.shardings(stages), []
        coster, memory = self.memory.coster, self.memory
        known, kept = coster.known_cuts(mesh), memory.kept(mesh)
        fitting: set[Sharding] = set()
        for position, plan in enumerate(self._plans_of(pp, count) if allowed else ()):
            cut = known.get(plan.number) or coster.cut(mesh, plan.chain)
            roomy = allowed
            for crowd in self._crowds_of(plan, cut, count):
                left, states = memory.room_of(kept, crowd), memory.states(mesh, pp, dp, crowd.size)
                roomy = [one for one in roomy if states[one] <= left]
            if roomy:
                plans.append((position, plan, cut, roomy))
                fitting.update(roomy)
            else:
                self.counts.over_memory += 1
        return Roomy(stages, [one for one in allowed if one in fitting], plans)

    def _crowds_of(self, plan: Plan, cut: Cut, count: int) -> tuple[Crowd, ...]:
        """The first stage, and the one behind it that keeps most where that has more blocks, or
        keeps more of them; none where nothing is counted.
        """
        if plan.peak is None:
            return ()
        key = (id(plan), id(cut))  # both are kept, so that a number is one's alone
        found = self._crowds.get(key)
        if found is None:
            chain = cut.chain
            peaks = peaks_of(plan.name, chain.num_stages, count, plan.vpp)
            first, *behind = zip(cut.sizes, peaks, strict=True)
            most = max(behind, key=_num_kept, default=first)
            is_more = most[0][0] > first[0][0] or _num_kept(most) > _num_kept(first)
            found = self._crowds[key] = tuple([
                Crowd(size, peak / chain.num_chunks)
                for size, peak in ((first, most) if is_more else (first,))
            ])  # fmt: skip
        return found

    def allow(self, stages: Stages, sharding: Sharding, one: Bounded) -> bool:
        """Whether no rule refuses the sharding with this schedule."""
        key = (stages.pp, stages.num_microbatches, sharding, one.position)
        if key not in self._allowed_pipelines:
            choice = choice_in(stages, sharding, one.name, one.vpp)
            self._allowed_pipelines[key] = self.rules.allow_pipeline(choice)
        return self._allowed_pipelines[key]

    def shardings(self, stages: Stages) -> list[Sharding]:
        """What a rule allows with some schedule."""
        pp, shardings = stages.pp, stages.shardings
        key = (pp, shardings)
        if key not in self._allowed:
            self._allowed[key] = [
                (engine, stage, offload)
                for engine, stage, offload in shardings
                # Inside a pipeline ZeRO-2 is ZeRO-1: it takes as long, and no less.
                if not (stage == 2 and pp > 1 and (engine, 1, offload) in shardings)
                and self.rules.allow(engine=engine, zero_stage=stage, offload=offload, pp=pp)
            ]
        return self._allowed[key]

    def _plans_of(self, pp: int, count: int) -> list[Plan]:
        """Of so many microbatches on so many stages."""
        key = (pp, count)
        if key not in self._plans:
            self._plans[key] = [
                self._plan(name, pp, vpp, count) for name, vpp in self.space.pipelines(pp, count)
            ]
        return self._plans[key]

    def _plan(self, name: str, pp: int, vpp: int, count: int) -> Plan:
        chain, peak = (
            self.memory.coster.chain(name, pp, vpp), self.memory.first_peak(name, pp, vpp, count),
        )  # fmt: skip
        return Plan(name, vpp, has_late_weights(name), chain, id(chain), peak)


def _num_kept(stage: tuple[Size, int]) -> int:
    """Blocks with experts, where any have, times microbatches."""
    (layers, plain, _, _), peak = stage
    return (layers - plain) * peak
