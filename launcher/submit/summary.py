"""The table that ends a run: predicted beside measured."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from launcher.plan.run_files import RunFiles


def write_failure(files: RunFiles, status: str, error: str) -> None:
    """Note in summary.json how a run ended that did not end well; a finished summary stays."""
    if not files.summary.exists():
        document = {"outcome": {"status": status, "error": error}}
        with contextlib.suppress(OSError):  # A full disk must not hide the reason itself.
            files.summary.write_text(json.dumps(document, indent=1) + "\n")


def read_outcome(files: RunFiles) -> dict[str, Any]:
    """How summary.json says that the run ended; empty where there is none."""
    try:
        outcome = json.loads(files.summary.read_text())["outcome"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return outcome if isinstance(outcome, dict) else {}


def render_summary(files: RunFiles) -> str:
    """Step time, tokens/s, MFU and peak memory per rank, and how the training ended."""
    document: dict[str, Any] = json.loads(files.summary.read_text())
    predicted, measured = document["predicted"], document["measured"]
    rows = [
        _row("step time", predicted["step_s"], measured["step_s"], lambda s: f"{s * 1e3:,.1f} ms"),
        *_learned(predicted, measured),
        _row(
            "tokens/s", predicted["tokens_per_s"], measured["tokens_per_s"], lambda n: f"{n:,.0f}"
        ),
        _row("MFU", predicted["mfu"], measured["mfu"], lambda share: f"{share:.1%}"),
    ]
    peaks = zip(predicted["peak_bytes"], measured["peak_bytes"], strict=True)
    for rank, (expected, seen) in enumerate(peaks):
        rows.append(_row(f"peak memory rank {rank}", expected, seen, _mib))
    table = [f"{'':22}{'predicted':>14}{'measured':>14}{'difference':>12}", *rows]
    outcome = document["outcome"]
    loss = "no loss measured" if outcome["loss"] is None else f"loss {outcome['loss']:.4f}"
    table.append(f"\n{loss} after {outcome['steps']} steps")
    if outcome.get("validation_loss") is not None:
        table[-1] += f", validation loss {outcome['validation_loss']:.4f} nats per token"
    return "\n" + "\n".join(table)


def _learned(predicted: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """What earlier runs on this hardware let expect."""
    expected = predicted.get("learned_step_s")
    if expected is None:
        return []
    return [_row("  as earlier runs", expected, measured["step_s"], lambda s: f"{s * 1e3:,.1f} ms")]


def _row(name: str, predicted: float, measured: float | None, show: Any) -> str:
    seen = "-" if measured is None else show(measured)
    difference = f"{predicted / measured - 1:+.0%}" if measured else "-"
    return f"{name:22}{show(predicted):>14}{seen:>14}{difference:>12}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
