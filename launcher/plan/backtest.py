"""How far predictions are from measured runs: per row, per source, overall, and per sweep."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.plan.backtest_rows import BadRow, Facts, Measured, Unsupported, for_fit, read_row
from launcher.plan.execution import Job
from launcher.plan.memory import estimate_job_memory
from launcher.plan.records import Stage
from launcher.plan.schedule import SCHEDULES, build_schedule
from launcher.plan.schedule_records import Chain, Schedule, ScheduleError
from launcher.plan.stage_time import estimate_parts, stage_cost
from launcher.plan.stages import make_stages, split_stages
from launcher.plan.step_time import (
    StepEstimate,
    estimate_job,
    find_links,
    free_p2p_s,
    time_parts,
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row."""

    id: str
    source: str
    status: str
    """predicted, unsupported or bad."""
    reason: str = ""
    predicted_step_s: float | None = None
    measured_step_s: float | None = None
    time_error: float | None = None
    """predicted / measured - 1."""
    predicted_memory_bytes: int | None = None
    measured_memory_bytes: int | None = None
    memory_error: float | None = None
    predicted_fits: bool | None = None
    measured_fits: bool | None = None
    group: tuple[str, ...] = ()


def predict_row(row: Mapping[str, str | None], facts: Facts) -> Answer:
    """Predict and compare."""
    name, source = (row.get("id") or "").strip(), (row.get("source") or "").strip()
    try:
        return compare(read_row(row, facts))
    except (Unsupported, ScheduleError) as reason:
        return Answer(id=name, source=source, status="unsupported", reason=str(reason))
    except BadRow as reason:
        return Answer(id=name, source=source, status="bad", reason=str(reason))


def compare(measured: Measured) -> Answer:
    """The prediction beside what was measured."""
    job = measured.job
    stages, step = predict_job(job)
    in_flight = step.simulation.peak_in_flight
    memory = estimate_job_memory(job, stages, in_flight).peak_bytes
    whole = estimate_job_memory(for_fit(job), stages, in_flight)
    step_s = step.time.step_s
    return Answer(
        id=measured.id,
        source=measured.source,
        status="predicted",
        predicted_step_s=step_s,
        measured_step_s=measured.step_s,
        time_error=step_s / measured.step_s - 1 if measured.step_s else None,
        predicted_memory_bytes=memory,
        measured_memory_bytes=measured.memory_bytes,
        memory_error=memory / measured.memory_bytes - 1 if measured.memory_bytes else None,
        predicted_fits=whole.peak_bytes <= whole.capacity_bytes,
        measured_fits=not measured.did_not_fit,
        group=measured.group,
    )


def predict_job(job: Job) -> tuple[tuple[Stage, ...], StepEstimate]:
    """Stages even where they can be, as the programs of measured runs split them."""
    layout, model = job.layout, job.model
    if model.num_layers % layout.pp == 0:
        each = model.num_layers // layout.pp
        stages = make_stages(model, [(i * each, (i + 1) * each) for i in range(layout.pp)])
    else:
        parts = estimate_parts(job)
        stages = split_stages(
            model, layout.pp, block_s=parts.block_s, first_s=parts.embedding_s,
            last_s=parts.head_s,
        )  # fmt: skip
    return stages, estimate_job(job, stages, _schedule(job, stages))


def _schedule(job: Job, stages: Sequence[Stage]) -> Schedule:
    """By name; those made for measured times are made for the predicted ones."""
    layout = job.layout
    name, count = layout.schedule, layout.num_microbatches
    if SCHEDULES[name].order is not None:
        chunks = layout.vpp if SCHEDULES[name].chunks is None else None
        return build_schedule(name, layout.pp, count, chunks)
    links = find_links(job)
    parts = estimate_parts(job, links)
    costs = [stage_cost(job, stage, parts, links) for stage in stages]
    times = time_parts(job, costs, parts, Chain(num_stages=layout.pp), True, links)
    return build_schedule(name, layout.pp, count, None, times, free_p2p_s(job, links))


def backtest(rows: Iterable[Mapping[str, str | None]], facts: Facts) -> dict[str, Any]:
    """The document of `launch backtest --json`."""
    answers = [predict_row(row, facts) for row in rows]
    sources = {
        source: summarise([answer for answer in answers if answer.source == source])
        for source in dict.fromkeys(answer.source for answer in answers)
    }
    return {
        "rows": [_row_json(answer) for answer in answers],
        "sources": sources,
        "overall": summarise(answers) | {"sweeps": sweeps(answers)},
    }


def _row_json(answer: Answer) -> dict[str, Any]:
    document = asdict(answer)
    del document["group"]
    if answer.status == "bad":  # a row that cannot be read is not supported either
        document |= {"status": "unsupported", "reason": f"broken row: {answer.reason}"}
    return document


def summarise(answers: Sequence[Answer]) -> dict[str, Any]:
    """Mean and median absolute error and bias of time and memory; fits called rightly."""
    fits = [answer for answer in answers if answer.measured_fits is not None]
    return {
        "rows": len(answers),
        "predicted": sum(answer.status == "predicted" for answer in answers),
        "time": _errors([a.time_error for a in answers if a.time_error is not None]),
        "memory": _errors([a.memory_error for a in answers if a.memory_error is not None]),
        "did_not_fit": {
            "rows": sum(not answer.measured_fits for answer in fits),
            "called": sum(not a.measured_fits and not a.predicted_fits for a in fits),
            "false_alarms": sum(bool(a.measured_fits) and not a.predicted_fits for a in fits),
        },
    }


def _errors(errors: Sequence[float]) -> dict[str, Any] | None:
    if not errors:
        return None
    absolute = [abs(error) for error in errors]
    return {
        "rows": len(errors),
        "mean_absolute": statistics.fmean(absolute),
        "median_absolute": statistics.median(absolute),
        "worst": max(absolute),
        "bias": statistics.fmean(errors),
    }


def sweeps(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Rows of one model on one cluster: does the plan rank their layouts as they measured?"""
    groups: dict[tuple[str, ...], list[Answer]] = {}
    for answer in answers:
        if answer.predicted_step_s and answer.measured_step_s:
            groups.setdefault(answer.group, []).append(answer)
    return [
        {
            "group": " ".join(group),
            "rows": len(members),
            "rank_correlation": _rank_correlation(members),
            "regret": _regret(members),
        }
        for group, members in groups.items()
        if len(members) >= 3
    ]


def _regret(members: Sequence[Answer]) -> float:
    """How much longer than the best the predicted best takes."""
    chosen = min(members, key=lambda answer: answer.predicted_step_s or 0.0)
    best = min(answer.measured_step_s or 0.0 for answer in members)
    return (chosen.measured_step_s or 0.0) / best - 1


def _rank_correlation(members: Sequence[Answer]) -> float | None:
    """Spearman's, ties shared; None where all are equal."""
    left = _ranks([answer.predicted_step_s or 0.0 for answer in members])
    right = _ranks([answer.measured_step_s or 0.0 for answer in members])
    if len(set(left)) == 1 or len(set(right)) == 1:
        return None
    return statistics.correlation(left, right)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 + 1 for value in values]
