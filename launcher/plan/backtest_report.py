"""A backtest for people: every row, every source, all, and every sweep of layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.errors import visible

ROW = "{:<58} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8}"
GROUP = "{:<58} {:>5} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}"


def render_backtest(document: Mapping[str, Any]) -> str:
    """Aligned text."""
    lines = [*_rows(document), "", *_groups(document), "", *_sweeps(document)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _rows(document: Mapping[str, Any]) -> Iterator[str]:
    yield ROW.format("row", "predicted", "measured", "error", "pred.", "measured", "error")
    yield ROW.format("", "s", "s", "%", "GiB", "GiB", "%")
    for row in document["rows"]:
        if row["status"] != "predicted":
            yield f"{_short(row['id'])} unsupported: {visible(row['reason'])}"
            continue
        fit = "" if row["predicted_fits"] is not False else "  does not fit"
        yield ROW.format(
            _short(row["id"]),
            _number(row["predicted_step_s"]),
            _number(row["measured_step_s"]),
            _percent(row["time_error"]),
            _gib(row["predicted_memory_bytes"]),
            _gib(row["measured_memory_bytes"]),
            _percent(row["memory_error"]),
        ) + fit + ("" if row["measured_fits"] is not False else " (measured: did not)")  # fmt: skip


def _groups(document: Mapping[str, Any]) -> Iterator[str]:
    yield GROUP.format("source", "rows", "mean", "median", "bias", "mean", "median", "bias")
    yield GROUP.format("", "", *3 * ["time %"], *3 * ["mem. %"])
    for source, summary in document["sources"].items():
        yield _group(source, summary)
    overall = document["overall"]
    yield _group("overall", overall)
    fits = overall["did_not_fit"]
    yield (
        f"did not fit: {fits['called']} of {fits['rows']} rows called; "
        f"{fits['false_alarms']} rows called that did fit"
    )


def _group(name: str, summary: Mapping[str, Any]) -> str:
    time, memory = summary["time"] or {}, summary["memory"] or {}
    return GROUP.format(
        _short(name),
        f"{summary['predicted']}/{summary['rows']}" if summary["rows"] < 100 else summary["rows"],
        _percent(time.get("mean_absolute"), sign=""),
        _percent(time.get("median_absolute"), sign=""),
        _percent(time.get("bias")),
        _percent(memory.get("mean_absolute"), sign=""),
        _percent(memory.get("median_absolute"), sign=""),
        _percent(memory.get("bias")),
    )


def _sweeps(document: Mapping[str, Any]) -> Iterator[str]:
    sweeps = document["overall"]["sweeps"]
    if not sweeps:
        return
    yield "{:<82} {:>5} {:>8} {:>8}".format("layouts of one model on one cluster", "rows",
                                            "rank", "regret")  # fmt: skip
    for sweep in sweeps:
        rank = sweep["rank_correlation"]
        yield (
            f"{sweep['group'][:82]:<82} {sweep['rows']:>5} "
            f"{'' if rank is None else f'{rank:.2f}':>8} {_percent(sweep['regret'], sign=''):>8}"
        )


def _short(name: str) -> str:
    name = " ".join(visible(name).split())
    return f"{name if len(name) <= 58 else name[:57] + '…':<58}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(value: float | None, sign: str = "+") -> str:
    return "" if value is None else f"{100 * value:{sign}.1f}"


def _gib(value: int | None) -> str:
    return "" if value is None else f"{value / 2**30:.1f}"
