"""A schedule's file is read once, when the run is composed: run.yaml carries its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.config.schema import is_schedule_file
from launcher.errors import Finding

LIMIT_BYTES = 64 * 2**20


def with_schedule_lines(values: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Composed values with the lines of `parallelism.schedule` where that names a file."""
    parallelism = values.get("parallelism")
    name = parallelism.get("schedule") if isinstance(parallelism, dict) else None
    if not isinstance(parallelism, dict):
        return values, []
    if parallelism.get("schedule_lines") is not None:
        return (values, []) if is_schedule_file(name) else _without_file(values, parallelism)
    if not is_schedule_file(name):
        return values, []
    path = Path(str(name)).expanduser()
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise OSError(f"larger than {LIMIT_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return values, [
            Finding(
                field="parallelism.schedule",
                value=name,
                rule="schedule-file-readable",
                reason=f"the file cannot be read: {reason}",
                fix="a path to a .csv or .json file, absolute or from the current directory",
            )
        ]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return values | {"parallelism": parallelism | {"schedule_lines": lines}}, []


def _without_file(
    values: dict[str, Any], parallelism: dict[str, Any]
) -> tuple[dict[str, Any], list[Finding]]:
    """Lines beside a name would run in place of what the name promises."""
    finding = Finding(
        field="parallelism.schedule_lines",
        rule="schedule-lines-from-a-file",
        reason=f"parallelism.schedule={parallelism.get('schedule')} names no file",
        fix="parallelism.schedule_lines=null",
    )
    return values | {"parallelism": parallelism | {"schedule_lines": None}}, [finding]
