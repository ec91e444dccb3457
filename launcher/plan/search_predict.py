"""A chosen layout with the plan's own prediction, and the rule of thumb that people start from."""

from __future__ import annotations

from itertools import product

from launcher.config.rule import divisors
from launcher.config.rules import check_run
from launcher.config.schema import Run
from launcher.errors import ConfigError
from launcher.frozen import frozen
from launcher.plan.estimate import Estimate, estimate_layout, estimate_layout_memory
from launcher.plan.fill import fill_run
from launcher.plan.records import Layout, Memory
from launcher.plan.search_choice import (
    PLAIN,
    TRAIN_KEYS,
    Choice,
    changed,
    choice_of,
    layout_of,
)


@frozen
class Predicted:
    """A layout with its prediction."""

    choice: Choice
    run: Run
    estimate: Estimate


@frozen
class Weighed:
    """A layout with its memory alone."""

    choice: Choice
    run: Run
    memory: Memory


def weigh(run: Run, choice: Choice) -> Weighed:
    """What `predict` says of memory."""
    filled, layout = layout_of(run, choice)
    return Weighed(choice=choice, run=filled, memory=estimate_layout_memory(filled, layout))


def predict(run: Run, choice: Choice) -> Predicted:
    """By the very function of `launch plan`."""
    filled, layout = layout_of(run, choice)
    return Predicted(choice=choice, run=filled, estimate=estimate_layout(filled, layout))


def predict_filled(run: Run) -> Predicted:
    """What `launch plan` makes of a run; ConfigError where no layout is legal."""
    run, layout = _fill(run)
    estimate = estimate_layout(run, layout)
    return Predicted(choice=choice_of(run), run=run, estimate=estimate)


def _fill(run: Run) -> tuple[Run, Layout]:
    filled = fill_run(run)
    return changed(filled.run, parallelism={"fill": "fit"}), filled.layout


def speed(predicted: Predicted) -> tuple[bool, float]:
    """What is compared: whether it fits, then tokens/s."""
    return predicted.estimate.memory.fits, predicted.estimate.step.time.tokens_per_s


def rule_of_thumb(run: Run, fixed: frozenset[str]) -> Predicted:
    """TP up to the node, then stages or FSDP until it fits, dp from the rest."""
    thumb = predict_filled(_legal_plain(run, fixed))
    if run.train.global_batch_size is None:
        return thumb
    return fsdp_instead(run, fixed, thumb)


def weigh_thumb(run: Run, fixed: frozenset[str]) -> Weighed:
    """The same without FSDP instead, and without how long it takes."""
    run, layout = _fill(_legal_plain(run, fixed))
    return Weighed(choice=choice_of(run), run=run, memory=estimate_layout_memory(run, layout))


def close_batch(run: Run, fixed: frozenset[str]) -> tuple[Run, Predicted]:
    """The run with the rule of thumb's batch, where it has none, and the rule of thumb's layout."""
    thumb = rule_of_thumb(run, fixed)
    closed = with_batch(run, fixed, thumb.run)
    return closed, thumb if closed is run else fsdp_instead(closed, fixed, thumb)


def with_own_batch(run: Run, fixed: frozenset[str]) -> Run:
    """With the batch that `launch plan` gives the user's own keys: both then speak of one step.

    As it is where the batch is given or follows dp, where no key of a layout is given, or where the
    rule of thumb cannot share that batch.
    """
    if run.train.global_batch_size is not None or not fixed or set(TRAIN_KEYS) <= fixed:
        return run
    try:
        own = fill_run(run).run.train.global_batch_size
        closed = changed(run, train={"global_batch_size": own})
        fill_run(_plain(closed, fixed))
    except ConfigError:
        return run
    return closed


def with_batch(run: Run, fixed: frozenset[str], thumb: Run) -> Run:
    """With this rule of thumb's batch; as it is where its batch is given or follows dp."""
    if run.train.global_batch_size is not None or set(TRAIN_KEYS) <= fixed:
        return run
    return changed(run, train={"global_batch_size": thumb.train.global_batch_size})


def fsdp_instead(run: Run, fixed: frozenset[str], thumb: Predicted) -> Predicted:
    """FSDP on the same tp, where that is free to choose and better."""
    if fixed & {"engine", "zero_stage", "pp", "schedule", "vpp", "dp"}:
        return thumb
    values = {"pp": 1, "engine": "fsdp2", "zero_stage": 3, "tp": thumb.choice.tp}
    other = changed(_plain(run, fixed), parallelism=values)
    if check_run(other):
        return thumb
    try:
        sharded = predict_filled(other)
    except ConfigError:
        return thumb
    return max(thumb, sharded, key=speed)


def _legal_plain(run: Run, fixed: frozenset[str]) -> Run:
    """The plainest run or, where what is fixed leaves it no layout, the first with less tp, or with
    some cp, that has one: ep=8 on eight devices wants eight replicas.
    """
    plain = _plain(run, fixed)
    try:
        fill_run(plain)
    except ConfigError:
        per_node = run.hardware.gpus_per_node or 1
        tps = [None] if "tp" in fixed else divisors(per_node)[::-1]
        cps = [None] if "cp" in fixed else divisors(per_node)
        for cp, tp in product(cps, tps):
            values = {"tp": tp, "cp": cp}
            other = changed(plain, parallelism={k: v for k, v in values.items() if v})
            if _has_layout(other):
                return other
        raise
    return plain


def _has_layout(run: Run) -> bool:
    try:
        fill_run(run)
    except ConfigError:
        return False
    return True


def _plain(run: Run, fixed: frozenset[str]) -> Run:
    plain = {key: value for key, value in PLAIN.items() if key not in fixed}
    if "schedule" in fixed:
        plain.pop("schedule_lines", None)
    if "vpp" in fixed or "schedule" in fixed:  # loading has made them suit each other
        plain.pop("vpp", None)
        plain.pop("schedule", None)
    if "engine" in fixed and run.parallelism.engine == "fsdp2":
        plain.pop("zero_stage", None)
    open_batch = {key: None for key in TRAIN_KEYS if key not in fixed}
    return changed(run, parallelism=plain | {"fill": "tp"}, train=open_batch)
