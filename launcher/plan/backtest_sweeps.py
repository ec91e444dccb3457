"""Answers to rows, and whether the plan ranks the layouts of one model as they measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row."""

    id: str
    source: str
    status: str
    """predicted, unsupported or bad."""
    reason: str = ""
    line: int | None = None
    """Of the table's file, where the row ends."""
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
    shape: tuple[int, ...] = ()
    """Of the model: names are reused, by runs that override a size above all."""
    tokens: int = 0
    """Per step: layouts are compared by time per token."""
    assumed: tuple[str, ...] = ()
    """What the row does not say, and how it was taken."""


def sweeps(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Rows of one model on one cluster: does the plan rank their layouts as they measured?"""
    groups: dict[tuple[object, ...], list[Answer]] = {}
    for answer in answers:
        if answer.predicted_step_s and answer.measured_step_s:
            same = (answer.shape, *(part.casefold() for part in answer.group))
            groups.setdefault(same, []).append(answer)
    layouts = [_layouts(members) for members in groups.values()]
    return [
        {
            "group": " ".join(members[0].group),
            "rows": len(members),
            "rank_correlation": _rank_correlation(members),
            "regret": _regret(members),
        }
        for members in layouts
        if len(members) >= 3
    ]


def _layouts(members: Sequence[Answer]) -> list[Answer]:
    """Runs of the very same job are one layout, by their mean: no prediction can order them."""
    same: dict[tuple[float, int], list[float]] = {}
    for answer in members:
        same.setdefault((answer.predicted_step_s or 0.0, answer.tokens), []).append(
            answer.measured_step_s or 0.0
        )
    return [
        replace(members[0], predicted_step_s=predicted, tokens=tokens,
                measured_step_s=statistics.fmean(measured))
        for (predicted, tokens), measured in same.items()
    ]  # fmt: skip


def _regret(members: Sequence[Answer]) -> float:
    """How much longer than the best the predicted best takes."""
    predicted, measured = _per_token(members)
    return measured[predicted.index(min(predicted))] / min(measured) - 1


def _rank_correlation(members: Sequence[Answer]) -> float | None:
    """Spearman's, ties shared; None where all are equal."""
    left, right = (_ranks(values) for values in _per_token(members))
    if len(set(left)) == 1 or len(set(right)) == 1:
        return None
    return statistics.correlation(left, right)


def _per_token(members: Sequence[Answer]) -> tuple[list[float], list[float]]:
    """Predicted and measured seconds per token, a list each."""
    predicted = [(answer.predicted_step_s or 0.0) / answer.tokens for answer in members]
    return predicted, [(answer.measured_step_s or 0.0) / answer.tokens for answer in members]


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 + 1 for value in values]
