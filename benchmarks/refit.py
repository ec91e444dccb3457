"""Fit the device constants again with one source left out, and predict that source with them.

    python benchmarks/refit.py runs.csv [--source WORD]

For every source of the table whose devices others measured too: constants under conf/hardware that
such rows move are fitted to all other rows (mean absolute error, by steps along the gradient), from
a start that knows nothing of any row; those that nothing else moves stay at that start. Printed are
the left-out source's mean error and bias with the published constants and with the refitted ones.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.config.assets import conf_dir
from launcher.config.facts import read_gpus, read_models, read_networks, read_nodes
from launcher.plan.backtest import predict_row
from launcher.plan.backtest_cells import BadRow, Unsupported
from launcher.plan.backtest_hardware import find_devices, share_fabrics
from launcher.plan.backtest_rows import Facts, read_row

START = {
    "max_efficiency": 0.75, "memory_efficiency": 0.8, "fp8_efficiency": 0.65, "efficiency": 0.8,
    "flash_attention": 0.4, "triton_attention": 0.25, "cudnn_attention": 0.45,
}  # fmt: skip
"""Where a fit begins: round shares of a peak; attention forward."""

BACKWARD = 0.83
"""Attention's backward rate over its forward rate, kept."""

ROUNDS, STEP, LEAST = 6, 0.02, 0.005
"""Of the fit; relative change that finds a slope; slope below which rows do not move a constant."""


@dataclass(frozen=True)
class Constant:
    """One number under conf/hardware."""

    kind: str
    """gpus, nodes."""
    option: str
    name: str


def constants_of(rows: Iterable[Mapping[str, str | None]], facts: Facts) -> list[Constant]:
    """Those of the devices and nodes that these rows have."""
    found: dict[Constant, None] = {}
    for row in rows:
        hardware = read_row(row, facts).job.hardware
        assert hardware.gpu is not None
        gpu = next(key for key, value in facts.gpus.items() if value == hardware.gpu)
        node = next(key for key, value in facts.nodes.items() if value == hardware.node)
        for name in START:
            if name == "efficiency":
                found[Constant("nodes", node, name)] = None
            elif getattr(hardware.gpu, name) is not None:
                found[Constant("gpus", gpu, name)] = None
    return list(found)


def value_of(facts: Facts, constant: Constant) -> float:
    value = getattr(getattr(facts, constant.kind)[constant.option], constant.name)
    return float(value.forward if constant.name.endswith("attention") else value)


def with_values(facts: Facts, values: Mapping[Constant, float]) -> Facts:
    """The facts with other constants."""
    tables = {"gpus": dict(facts.gpus), "nodes": dict(facts.nodes)}
    for constant, number in values.items():
        record = tables[constant.kind][constant.option]
        value: Any = min(number, 1.0)
        if constant.name.endswith("attention"):
            rates = getattr(record, constant.name)
            value = rates.model_copy(update={"forward": value, "backward": BACKWARD * value})
        tables[constant.kind][constant.option] = record.model_copy(update={constant.name: value})
    return replace(facts, **tables)


def errors(rows: Sequence[Mapping[str, str | None]], facts: Facts) -> list[float]:
    """log(predicted / measured) of every row with a time."""
    found = []
    for row in rows:
        answer = predict_row(row, facts)
        assert answer.predicted_step_s is not None
        assert answer.measured_step_s is not None
        found.append(math.log(answer.predicted_step_s / answer.measured_step_s))
    return found


def fit(
    rows: Sequence[Mapping[str, str | None]], facts: Facts, wanted: Sequence[Constant]
) -> Facts:
    """Least absolute errors by reweighted least squares in the logarithms, a few rounds."""
    values = {constant: START[constant.name] for constant in wanted}
    for _ in range(ROUNDS):
        here = errors(rows, with_values(facts, values))
        slopes = []
        for constant in wanted:
            moved = values | {constant: values[constant] * math.exp(STEP)}
            there = errors(rows, with_values(facts, moved))
            slopes.append([(b - a) / STEP for a, b in zip(here, there, strict=True)])
        steps = solve(slopes, here)
        for constant, step in zip(wanted, steps, strict=True):
            values[constant] = min(1.0, values[constant] * math.exp(max(-0.4, min(0.4, step))))
    return with_values(facts, values)


def solve(slopes: Sequence[Sequence[float]], here: Sequence[float]) -> list[float]:
    """The step that makes errors smallest; none along what rows hardly move."""
    weights = [1 / max(0.02, abs(error)) for error in here]
    size = len(slopes)
    matrix = [
        [sum(w * a * b for w, a, b in zip(weights, one, other, strict=True)) for other in slopes]
        for one in slopes
    ]
    right = [-sum(w * a * e for w, a, e in zip(weights, one, here, strict=True)) for one in slopes]
    least = LEAST * sum(weights)
    for index in range(size):
        matrix[index][index] += 0.2 * least  # keeps what is poorly known near where it is
        if max(abs(slope) for slope in slopes[index]) < LEAST:
            matrix[index], right[index] = [0.0] * size, 0.0
            matrix[index][index] = 1.0
    return eliminate(matrix, right)


def eliminate(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss with pivots."""
    size = len(right)
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(size):
            if row != column:
                factor = rows[row][column] / rows[column][column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    return [rows[row][size] / rows[row][row] for row in range(size)]


def usable_rows(path: Path, facts: Facts) -> list[Mapping[str, str | None]]:
    """Rows with a time that can be predicted."""
    with path.open(encoding="utf-8-sig") as file:
        rows = share_fabrics(csv.DictReader(file))
    found = []
    for row in rows:
        try:
            if read_row(row, facts).step_s:
                found.append(row)
        except (BadRow, Unsupported):
            continue
    return found


def name_of(row: Mapping[str, str | None]) -> str:
    """Who measured it: two tables of one page are one source."""
    return re.split(r"[:(0-9]", row["source"] or "")[0].strip()


def device_of(row: Mapping[str, str | None]) -> str:
    """By the words of its cell, remarks aside."""
    found = find_devices({"gpu": row["gpu"] or "", "notes": ""})
    return found.gpu if found else ""


def main() -> None:
    """A line per source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--source", default="", help="only sources with this word")
    asked, conf = parser.parse_args(), conf_dir()
    facts = Facts(
        gpus=read_gpus(conf), nodes=read_nodes(conf), networks=read_networks(conf),
        models=read_models(conf),
    )  # fmt: skip
    rows = usable_rows(asked.table, facts)
    print(f"{'left out':<58} {'rows':>4} {'published':>16} {'refitted':>16}")
    print(f"{'':<58} {'':>4} {'mean %  bias %':>16} {'mean %  bias %':>16}")
    for source in dict.fromkeys(name_of(row) for row in rows):
        if asked.source not in source:
            continue
        elsewhere = {device_of(row) for row in rows if name_of(row) != source}
        out = [row for row in rows if name_of(row) == source and device_of(row) in elsewhere]
        devices = {device_of(row) for row in out}
        others = [row for row in rows if name_of(row) != source and device_of(row) in devices]
        wanted = constants_of(out, facts) if out else []
        if not out:
            print(f"{source[:58]:<58}       no other source has its devices", flush=True)
            continue
        before, after = errors(out, facts), errors(out, fit(others, facts, wanted))
        print(f"{source[:58]:<58} {len(out):>4} {shown(before)} {shown(after)}", flush=True)


def shown(found: Sequence[float]) -> str:
    """Mean absolute error and bias in percent."""
    shares = [math.expm1(error) for error in found]
    mean = statistics.fmean(abs(share) for share in shares)
    return f"{100 * mean:>7.1f} {100 * statistics.fmean(shares):>+8.1f}"


if __name__ == "__main__":
    main()
