"""Which values of a layout the rules allow together, kept as a search asks for them."""

from __future__ import annotations

from launcher.config.rules import obeys_rules
from launcher.config.schema import Run, is_schedule_file
from launcher.plan.search_choice import Choice, changed, plain_of, run_of
from launcher.plan.search_nodes import Counts


class Legality:
    """The rules for one run's layouts."""

    def __init__(self, run: Run, counts: Counts) -> None:
        self._run, self._counts = run, counts
        self._allowed: dict[object, bool] = {}

    def allow(self, **values: object) -> bool:
        """Whether no rule refuses these values with all others open."""
        key = tuple(values.items())
        if key not in self._allowed:
            degrees = plain_of(self._run) | values
            if is_schedule_file(str(degrees["schedule"])):
                degrees.pop("schedule_lines")
            count = degrees.pop("num_microbatches", None)
            batch = {"micro_batch_size": None, "num_microbatches": count, "global_batch_size": None}
            self._allowed[key] = obeys_rules(changed(self._run, parallelism=degrees, train=batch))
            self._counts.illegal += not self._allowed[key]
        return self._allowed[key]

    def allow_pipeline(self, choice: Choice) -> bool:
        """The keys that make a pipeline."""
        return self.allow(
            pp=choice.pp, schedule=choice.schedule, vpp=choice.vpp, engine=choice.engine,
            zero_stage=choice.zero_stage, num_microbatches=choice.num_microbatches,
        )  # fmt: skip

    def allow_whole(self, choice: Choice) -> bool:
        """All keys."""
        return obeys_rules(run_of(self._run, choice))
