"""What goes together: ways of cutting the model beside other options, judged by the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.config.rules import check_run
from launcher.config.schedule_facts import SCHEDULE_FACTS
from launcher.config.schema import Run

_BASE: dict[str, dict[str, Any]] = {
    "model": {
        "name": "example", "num_layers": 16, "hidden_size": 64, "num_heads": 8,
        "ffn_hidden_size": 128, "vocab_size": 256, "max_sequence_length": 64,
    },
    "hardware": {"name": "local", "device": "cpu"},
    "parallelism": {"name": "example", "tp": 1, "cp": 1, "pp": 1},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    "data": {"name": "stdlib_text", "kind": "stdlib_text", "dtype": "uint8"},
    "train": {"steps": 2, "micro_batch_size": 1, "num_microbatches": 8},
    "precision": {"name": "fp32", "compute": "fp32"},
    "launch": {"name": "local"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Option:
    """A choice in its smallest form."""

    label: str
    settings: Mapping[str, Any]
    """Values by dotted key."""


def _schedule(name: str) -> Option:
    chunks = SCHEDULE_FACTS[name].chunks or 2
    keys = {"parallelism.schedule": name, "parallelism.pp": 2, "parallelism.vpp": chunks}
    return Option(label=f"schedule={name}", settings=keys)


def _file(label: str, line: str) -> Option:
    keys = {"parallelism.schedule": "mine.csv", "parallelism.schedule_lines": [line] * 2}
    return Option(label=label, settings=keys | {"parallelism.pp": 2})


def _context(mode: str) -> Option:
    keys = {"parallelism.cp": 2, "parallelism.cp_mode": mode}
    return Option(label=f"cp_mode={mode}", settings=keys)


def _key(field: str, value: Any, label: str | None = None, **others: Any) -> Option:
    written = str(value).lower() if isinstance(value, bool) else value
    settings = {field: value} | {f"parallelism.{key}": given for key, given in others.items()}
    return Option(label=label or f"{field.rpartition('.')[2]}={written}", settings=settings)


CUTS = (
    *(_schedule(name) for name in SCHEDULE_FACTS),
    _file("schedule=mine.csv", "F0, B0"),
    _file("schedule=mine.csv, with W", "F0, B0, W0"),
    _key("parallelism.layers_per_stage", [7, 9], pp=2),
    _key("hardware.speeds", [1.0, 0.5], "hardware.speeds=[1, 0.5]", pp=2),
    _key("parallelism.sequence_parallel", True, tp=2),
    *(_context(mode) for mode in ("ring", "all_gather", "ulysses")),
    _key("parallelism.overlap_tp", True, tp=2),
    _key("parallelism.overlap_p2p", False, pp=2),
)
"""Rows of the table."""

OTHERS = (
    _key("parallelism.tp", 2),
    _key("parallelism.cp", 2),
    _key("parallelism.pp", 2),
    *(_key("parallelism.zero_stage", stage) for stage in (0, 1, 2, 3)),
    _key("parallelism.engine", "fsdp2"),
    _key("parallelism.recompute", "full"),
    _key("train.compile", True),
    _key("data.packing", "documents", "packed documents"),
    _key("model.sliding_window", 16, "sliding window"),
    _key("model.dropout", 0.1),
    _key("model.attention_dropout", 0.1),
    _key("model.tie_embeddings", True, "tied embeddings"),
)
"""Columns."""


def broken_rules(*options: Option) -> tuple[str, ...]:
    """The rules that such a run breaks; a degree that two options set is the row's."""
    document = {section: dict(keys) for section, keys in _BASE.items()}
    for option in reversed(options):
        for field, value in option.settings.items():
            section, _, key = field.partition(".")
            document[section][key] = value
    run = Run.model_validate(document)
    return tuple(sorted({finding.rule for finding in check_run(run)}))


def render_compatibility() -> str:
    """A Markdown table: yes, or the numbers of the rules that refuse it."""
    notes: dict[str, int] = {}
    lines = []
    for cut in CUTS:
        cells = [_cell(broken_rules(cut, other), notes) for other in OTHERS]
        lines.append(f"| {cut.label} | " + " | ".join(cells) + " |")
    head = "| | " + " | ".join(other.label for other in OTHERS) + " |"
    rule = "|---" * (len(OTHERS) + 1) + "|"
    refused = [f"{number}. `{name}`" for name, number in notes.items()]
    return "\n".join([head, rule, *lines, "", "Refused by:", "", *refused]) + "\n"


def _cell(broken: tuple[str, ...], notes: dict[str, int]) -> str:
    if not broken:
        return "yes"
    return "no: " + ", ".join(str(notes.setdefault(name, len(notes) + 1)) for name in broken)
