"""Verbs that read tables of measured runs."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Any

from launcher.commands import Request
from launcher.config.assets import conf_dir
from launcher.errors import EXIT_DONE, EXIT_INVALID_CONFIG, ConfigError, Finding, visible


def backtest(request: Request) -> int:
    """Predict every measured run of a table and say how far off it is."""
    from launcher.config.facts import read_gpus, read_models, read_networks, read_nodes
    from launcher.plan.backtest import backtest as predict_table
    from launcher.plan.backtest_report import render_backtest
    from launcher.plan.backtest_rows import Facts
    from launcher.plan.backtest_table import columns_not_read, read_table

    path, conf = _table_path(request), conf_dir()
    facts = Facts(
        gpus=read_gpus(conf), nodes=read_nodes(conf), networks=read_networks(conf),
        models=read_models(conf),
    )  # fmt: skip
    rows = read_table(_read_text(path), path)
    document = predict_table(rows, facts) | {"columns_not_read": columns_not_read(rows)}
    print(json_module.dumps(document, indent=1) if request.json else render_backtest(document))
    if unread := document["columns_not_read"]:
        words = ", ".join(visible(name) for name in unread)
        print(f"launch: {path}: columns that are not read: {words}", file=sys.stderr)
    broken = [row for row in document["rows"] if row["reason"].startswith(BROKEN)]
    for row in broken:
        print(_broken_row(path, row), file=sys.stderr)
    return EXIT_INVALID_CONFIG if broken else EXIT_DONE


BROKEN = "broken row: "


def _broken_row(path: str, row: dict[str, Any]) -> Finding:
    """`runs.csv:9: row a: gpus=eight [broken-row]: not a number. Try ...`"""
    cell, _, reason = row["reason"].removeprefix(BROKEN).partition(": ")
    where = f"{path}:{row['line']}: row {row['id']}"
    fix = "what was published there, or an empty cell where nothing was"
    if reason:
        return Finding(field=f"{where}: {cell}", rule="broken-row", reason=reason, fix=fix)
    fix = "quotes around cells that hold a comma, and two of them for one inside"
    if "ends" in cell:
        fix = "all of its cells, or no row"
    return Finding(field=where, rule="broken-row", reason=cell, fix=fix)


def calibrate(request: Request) -> int:
    """Measure the kernels of this machine and write them as a table that plans can use."""
    from launcher.config.kernel_table import COLUMNS
    from launcher.config.local_hardware import detect_machine
    from launcher.submit.calibrate import calibrate as measure
    from launcher.submit.plan_files import check_target

    if len(request.overrides) > 1:
        reason, fix = "writes one file", "launch calibrate FILE"
        raise ConfigError([Finding(field="calibrate", rule="one-table", reason=reason, fix=fix)])
    path = Path(request.overrides[0] if request.overrides else "kernels.csv").expanduser()
    # Before the measuring, which takes its time, and never over a file of another kind.
    if refused := check_target("calibrate", str(path), ",".join(COLUMNS), "launch calibrate"):
        raise ConfigError([refused])
    table, note = measure(detect_machine(), path)
    print(table, end="")
    if note:
        print(f"launch: exchanges between ranks were not measured: {note}", file=sys.stderr)
    print(f"\nuse it: launch plan hardware.kernels={path.absolute()}")
    return EXIT_DONE


def _table_path(request: Request) -> str:
    if len(request.overrides) == 1:
        return request.overrides[0]
    reason = "takes one file: a CSV table of measured runs"
    raise ConfigError(
        [Finding(field="backtest", rule="one-table", reason=reason, fix="launch backtest FILE.csv")]
    )


UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def _read_text(path: str) -> str:
    try:
        content = Path(path).read_bytes()
        # Excel's "Unicode text" begins with the mark of UTF-16.
        return content.decode("utf-16" if content[:2] in UTF_16 else "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        fix = "a CSV file of measured runs in UTF-8; docs/backtest.md names the columns"
        finding = Finding(field=path or "''", rule="unreadable-table", reason=str(reason), fix=fix)
        raise ConfigError([finding]) from None
