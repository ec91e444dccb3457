"""How far predictions are from measured runs: per row, per source, overall, and per sweep."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from launcher.config.schema import Model, Run
from launcher.plan.backtest_cells import BadRow, Unsupported, read_cells, read_integer, read_number
from launcher.plan.backtest_hardware import share_fabrics
from launcher.plan.backtest_rows import Facts, Measured, for_fit, read_row
from launcher.plan.backtest_silent import guesses, last_guesses
from launcher.plan.backtest_sweeps import Answer, sweeps
from launcher.plan.backtest_table import BROKEN, LINE
from launcher.plan.backtest_words import zero_stage
from launcher.plan.estimate import estimate_layout
from launcher.plan.execution import Job
from launcher.plan.fill import build_layout
from launcher.plan.memory import estimate_job_memory, zero_model_state_bytes
from launcher.plan.own_runs import read_own_run
from launcher.plan.records import Stage
from launcher.plan.schedule import SCHEDULES
from launcher.plan.schedule_made import is_made, make_schedule
from launcher.plan.schedule_records import Chain, ScheduleError
from launcher.plan.stage_time import estimate_parts
from launcher.plan.stages import make_stages, split_stages
from launcher.plan.step_time import (
    StepEstimate,
    estimate_job,
)


def _compare_own(row: Mapping[str, str | None], run: Run, name: str, source: str) -> Answer:
    """A run of this launcher, predicted as its plan would be today."""
    cells = read_cells(row)
    step_s, gib = read_number(cells, "step_time_s"), read_number(cells, "mem_gib")
    layout = build_layout(run)
    found = estimate_layout(run, layout)
    predicted_s, peak = found.step.time.step_s, found.memory.peak_bytes
    measured = None if gib is None else round(gib * 2**30)
    return Answer(
        id=name, source=source, status="predicted", predicted_step_s=predicted_s,
        measured_step_s=step_s, time_error=predicted_s / step_s - 1 if step_s else None,
        predicted_memory_bytes=peak, measured_memory_bytes=measured,
        memory_error=peak / measured - 1 if measured else None,
        predicted_fits=found.memory.fits, measured_fits=True,
        group=(source, cells["model"], cells["gpu"], cells["gpus"], cells["seq"]),
        shape=shape_of(run.model),
        tokens=layout.global_batch_size * layout.sequence_length,
    )  # fmt: skip


def shape_of(model: Model) -> tuple[int, ...]:
    """By which models of one name differ; not the vocabulary, which programs pad by tp."""
    return (model.num_layers, model.hidden_size, model.num_heads, model.ffn_hidden_size)


def predict_row(row: Mapping[str, str | None], facts: Facts) -> Answer:
    """Predict and compare."""
    name, source = (row.get("id") or "").strip(), (row.get("source") or "").strip()
    try:
        if broken := row.get(BROKEN):
            raise BadRow(broken)
        if (row.get("notes") or "").strip().startswith("[A]") and _has_no_run(row):
            return _model_states(row, name, source)
        if own := read_own_run(row):
            return _compare_own(row, own, name, source)
        return _compare_silent(row, facts)
    except (Unsupported, ScheduleError) as reason:
        return Answer(id=name, source=source, status="unsupported", reason=str(reason))
    except BadRow as bad:
        return Answer(id=name, source=source, status="bad", reason=str(bad))
    except (ValueError, ArithmeticError, LookupError, AssertionError) as error:
        words = f"internal error, please report it: {type(error).__name__}: {error}"
        return Answer(id=name, source=source, status="unsupported", reason=words)


def _compare_silent(row: Mapping[str, str | None], facts: Facts) -> Answer:
    """With the first guess at empty cells under which a run that was measured fits.

    Of the first ones without and with recomputation it is the faster one.
    """
    measured = read_row(row, facts)
    if measured.did_not_fit:
        return compare(measured)
    for guess in (guesses, last_guesses):
        choices = guess(row, measured.job.layout)
        fitting = [_first_fit(row, cells, measured, facts) for cells in choices]
        if found := [answer for answer in fitting if answer is not None]:
            return min(found, key=lambda answer: answer.predicted_step_s or 0.0)
    return compare(measured)


def _first_fit(
    row: Mapping[str, str | None],
    choices: Iterable[Mapping[str, str]],
    measured: Measured,
    facts: Facts,
) -> Answer | None:
    for cells in choices:
        answer = compare(read_row({**row, **cells}, facts) if cells else measured)
        if answer.predicted_fits:
            said = tuple(f"{name}={value}" for name, value in cells.items())
            named = tuple(part for part in answer.assumed if part not in said)
            return replace(answer, assumed=named + said)
    return None


def _has_no_run(row: Mapping[str, str | None]) -> bool:
    is_any = (row.get("gpu") or "").strip().lower() in ("", "any")
    return not row.get("layers") or (is_any and bool(row.get("zero_or_fsdp")))


def _model_states(row: Mapping[str, str | None], name: str, source: str) -> Answer:
    """A row worked out on paper: ZeRO's model states, in units of 1e9 bytes."""
    cells = read_cells(row)
    parameters, gigabytes = read_number(cells, "params_b"), read_number(cells, "mem_gib")
    if parameters is None or gigabytes is None:
        raise Unsupported("an analytic row without params_b or mem_gib")
    stage = zero_stage(cells["zero_or_fsdp"].lower(), 1)
    parts = read_integer(cells, "tp", 1) * read_integer(cells, "pp", 1)
    dp = read_integer(cells, "dp", max(1, read_integer(cells, "gpus", 1) // parts))
    predicted = round(zero_model_state_bytes(parameters * 1e9 / parts, stage, dp))
    measured = round(gigabytes * 1e9)
    return Answer(
        id=name, source=source, status="predicted", predicted_memory_bytes=predicted,
        measured_memory_bytes=measured, memory_error=predicted / measured - 1,
    )  # fmt: skip


def compare(measured: Measured) -> Answer:
    """The prediction beside what was measured."""
    job = measured.job
    stages, step = predict_job(job)
    in_flight = step.simulation.peak_in_flight
    memory = estimate_job_memory(job, stages, in_flight).peak_bytes
    whole = estimate_job_memory(for_fit(job), stages, in_flight)
    step_s = step.time.step_s
    fits = whole.peak_bytes <= whole.capacity_bytes
    if fits:  # the allocator gives back what it does not need before it takes more than there is
        memory = min(memory, _most_bytes(job, whole.capacity_bytes))
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
        predicted_fits=fits,
        measured_fits=not measured.did_not_fit,
        group=measured.group,
        shape=shape_of(job.model),
        tokens=job.layout.global_batch_size * job.layout.sequence_length,
        assumed=measured.assumed,
    )


def _most_bytes(job: Job, capacity: int) -> int:
    """That the row's measure of memory can show."""
    assert job.hardware.gpu is not None
    return capacity - (0 if job.execution.process else job.hardware.gpu.context_bytes)


def predict_job(job: Job) -> tuple[tuple[Stage, ...], StepEstimate]:
    """Stages even where they can be, as the programs of measured runs split them."""
    layout, model = job.layout, job.model
    chain = _chain(job)
    if bounds := _even_bounds(model.num_layers, chain.num_parts):
        stages = make_stages(model, chain, bounds)
    else:
        stages = split_stages(model, layout.pp, estimate_parts(job), chain)
    # Those made for measured times are made for the predicted ones.
    schedule = make_schedule(job, stages, chain) if is_made(layout.schedule) else None
    return stages, estimate_job(job, stages, chain, schedule)


def _even_bounds(num_layers: int, num_parts: int) -> list[tuple[int, int]]:
    """As many layers in each part; else embedding and head count as one each, if that comes out.

    So do Megatron-Core (`account_for_embedding_in_pipeline_split`), torchtitan and the authors of
    zero bubble (2401.10241) and Llama 3. Empty where neither does.
    """
    for ends in (0, 1):
        each, rest = divmod(num_layers + 2 * ends, num_parts)
        if rest == 0 and num_parts * each > 2 * ends:
            edges = [0] + [part * each - ends for part in range(1, num_parts)] + [num_layers]
            return list(pairwise(edges))
    return []


def _chain(job: Job) -> Chain:
    placement = SCHEDULES[job.layout.schedule].placement
    return Chain(num_stages=job.layout.pp, num_chunks=job.layout.vpp, placement=placement)


def backtest(rows: Iterable[Mapping[str, str | None]], facts: Facts) -> dict[str, Any]:
    """The document of `launch backtest --json`."""
    answers = [
        replace(predict_row(row, facts), line=int(row.get(LINE) or 0) or None)
        for row in share_fabrics(rows)
    ]
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
    del document["group"], document["tokens"]
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
