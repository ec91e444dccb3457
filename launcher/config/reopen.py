"""Which values of a frozen run are solved again when a resumed run changes its layout.

What training computes stays: the global batch and the sequence length are the frozen ones unless
they are overridden. How the devices compute it is solved anew where the frozen answer belongs to
another layout: dp takes the devices that are left, and microbatches follow dp.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from launcher.config.schema import is_schedule_file

_DEVICES = {
    "parallelism": ("tp", "cp", "ep", "pp", "vpp", "dp"),
    "hardware": ("num_nodes", "gpus_per_node"),
}
_BATCH = {"train": ("global_batch_size", "micro_batch_size", "num_microbatches")}


def reopen_values(
    frozen: Mapping[str, Any],
    amended: Mapping[str, Any],
    named: Set[str],
    also_open: Set[str] = frozenset(),
) -> dict[str, Any]:
    """The amended values, with what the overrides made open set to None.

    Args:
        frozen: values of run.yaml; nothing that workers read is open in them.
        amended: the same under the overrides.
        named: dotted keys and groups that the overrides name.
        also_open: keys to open besides, unless an override names them.

    """
    values = {
        key: dict(part) if isinstance(part, Mapping) else part for key, part in amended.items()
    }
    if not all(isinstance(values.get(name), dict) for name in ("parallelism", "hardware", "train")):
        return values  # The schema names what stands there instead.
    is_moved = _differs(frozen, values, _DEVICES)
    is_rebatched = is_moved or _differs(frozen, values, _BATCH)
    _keep(frozen, values, "train", ("sequence_length", "global_batch_size"), named)
    if is_moved and "parallelism" not in named:
        _open(values, "parallelism", ("dp",), named)
    is_local = values["hardware"].get("name") == "local" and "hardware" not in named
    if is_local and (is_moved or _differs(frozen, values, {"hardware": ("device",)})):
        _open(values, "hardware", ("gpus_per_node", "gpu", "node"), named)
    if is_rebatched and "train" not in named:
        _open(values, "train", ("num_microbatches",), named)
        if "train.num_microbatches" in named:
            _open(values, "train", ("micro_batch_size",), named)
    schedule = _value(values, "parallelism", "schedule")
    # A file may be gone; the lines of zb_1p and zb_2p are made anew for the new layout.
    if _value(frozen, "parallelism", "schedule") != schedule or not is_schedule_file(schedule):
        _open(values, "parallelism", ("schedule_lines",), named)
    for field in also_open:
        group, _, key = field.partition(".")
        _open(values, group, (key,), named)
    return values


def _differs(
    frozen: Mapping[str, Any], values: Mapping[str, Any], keys: Mapping[str, tuple[str, ...]]
) -> bool:
    return any(
        _value(frozen, group, key) != _value(values, group, key)
        for group, names in keys.items()
        for key in names
    )


def _keep(
    frozen: Mapping[str, Any],
    values: dict[str, Any],
    group: str,
    keys: tuple[str, ...],
    named: Set[str],
) -> None:
    """The frozen value where an option has left the key open."""
    for key in keys:
        if values[group].get(key) is None and f"{group}.{key}" not in named:
            values[group][key] = _value(frozen, group, key)


def _open(values: dict[str, Any], group: str, keys: tuple[str, ...], named: Set[str]) -> None:
    for key in keys:
        field = f"{group}.{key}"
        if not any(name == field or name.startswith(f"{field}.") for name in named):
            values[group][key] = None


def _value(values: Mapping[str, Any], group: str, key: str) -> Any:
    part = values.get(group)
    return part.get(key) if isinstance(part, Mapping) else None
