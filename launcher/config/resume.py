"""What changed between the frozen run and the one that is to continue it, key by key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.config.quoting import typed_value
from launcher.config.record import Refused
from launcher.config.resume_class import ClassName, ResumeClass
from launcher.config.schema import Record, Run
from launcher.config.validate import record_in
from launcher.errors import Finding
from launcher.frozen import frozen

CLASS_MEANINGS: Mapping[ClassName, str] = {
    "safe": "done; training goes on as it would have",
    "resharding": "done; the saved state is cut anew, and training goes on as it would have",
    "numerics": "done, said and recorded; from here on the loss curve is another",
    "forbidden": "refused; the saved state has no meaning under the new value",
}
"""What `launch resume` does with a changed key."""


@frozen
class Change:
    """One key that differs."""

    key: str
    """Dotted, as typed."""
    kind: ClassName
    old: Any
    """As run.yaml has it."""
    new: Any

    def __str__(self) -> str:
        """`train.seed: 1 -> 2`."""
        return f"{self.key}: {typed_value(self.old)} -> {typed_value(self.new)}"


def resume_classes(
    record: type[Record] = Run, prefix: str = ""
) -> Iterator[tuple[str, ClassName | None]]:
    """Every key of the schema with its class, None where it carries none.

    A group that is always there (`model`) has no class of its own; one that may be absent
    (`hardware.network`) has, for its coming and going.
    """
    for name, info in record.model_fields.items():
        inner = record_in(info.annotation)
        if inner is None or inner is not info.annotation:
            marks = [mark.name for mark in info.metadata if isinstance(mark, ResumeClass)]
            yield f"{prefix}{name}", marks[0] if marks else None
        if inner is not None:
            yield from resume_classes(inner, f"{prefix}{name}.")


def find_changes(old: Run, new: Run) -> tuple[Change, ...]:
    """Every key whose value differs, in the order of the schema; both runs have nothing open."""
    before, after = _leaves(_closed(old)), _leaves(_closed(new))
    return tuple(
        Change(key=key, kind=kind or "forbidden", old=before.get(key), new=after.get(key))
        for key, kind in resume_classes()
        if before.get(key) != after.get(key)
    )


def readable_part(frozen: Run, values: Mapping[str, Any]) -> Run:
    """The frozen run with those groups of the values that the schema takes, rules aside.

    So that a mistake in one group does not hide a forbidden change in another.
    """
    groups: dict[str, Any] = {}
    for name, record in frozen:
        if isinstance(record, Record) and name in values:
            with contextlib.suppress(Refused):
                groups[name] = type(record).model_validate(values[name])
    return frozen.model_copy(update=groups)


def refuse_changes(changes: tuple[Change, ...]) -> list[Finding]:
    """A finding with both values for every change that the saved state does not bear."""
    return [
        Finding(
            field=change.key,
            value=typed_value(change.new),
            rule="forbidden-on-resume",
            reason=f"the run was started with {typed_value(change.old)}, and what it has learned "
            "means nothing under another value",
            fix=f"{change.key}={typed_value(change.old)} to continue, or `launch run` for a new "
            "run",
        )
        for change in changes
        if change.kind == "forbidden"
    ]


def _closed(run: Run) -> Run:
    """The run with defaults that stand for another key's value written out."""
    model = run.model
    heads = {"num_kv_heads": model.kv_heads, "head_dim": model.head_size}
    return run.model_copy(update={"model": model.model_copy(update=heads)})


def _leaves(record: Record, prefix: str = "") -> dict[str, Any]:
    """Plain values by dotted key; a group that is there stands as `present` under its own name."""
    found: dict[str, Any] = {}
    for name, value in record:
        if isinstance(value, Record):
            found[f"{prefix}{name}"] = "present"
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
