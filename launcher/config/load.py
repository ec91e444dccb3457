"""From overrides to one checked run: compose, choose what was left to us, validate, judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.choose_model import choose_model
from launcher.config.compose import compose_run
from launcher.config.local_hardware import LocalMachine, cpu_facts, detect_machine, gpu_option
from launcher.config.rules import check_run
from launcher.config.schema import Run
from launcher.config.validate import validate_run
from launcher.errors import ConfigError, Finding


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A run that passed the schema and every rule, and what was chosen on the way."""

    run: Run
    decisions: tuple[str, ...]
    """What the user left open and was chosen here, a line each."""


def load_run(
    overrides: Sequence[str],
    config_dirs: Sequence[Path] = (),
    machine: Callable[[], LocalMachine] = detect_machine,
) -> Loaded:
    """Compose and check a run.

    Raises ConfigError with every finding at once.
    """
    # 1. What the YAML files and the command line say.
    composed = compose_run(overrides, config_dirs)
    decisions: list[str] = []
    # 2. hardware=local is this machine.
    hardware = composed.values.get("hardware")
    local = machine() if isinstance(hardware, dict) and hardware.get("name") == "local" else None
    facts = _local_facts(composed.values, local, config_dirs) if local else {}
    # 3. A model that suits the hardware, where none is named.
    if composed.choices.get("model") == "auto":
        name = _suitable_model(composed.values, facts)
        composed = compose_run([*overrides, f"model={name}"], config_dirs)
        decisions.append(f"model={name}: suits {_hardware_words(composed.values, facts)}")
    values = _with_facts(composed.values, facts)
    if facts:
        decisions.append(facts["decision"])
    # 4. The schema, then the rules.
    run, findings = validate_run(values)
    if run is not None:
        findings += check_run(run)
    findings = [*composed.findings, *findings]
    if findings or run is None:
        raise ConfigError(findings)
    return Loaded(run=run, decisions=tuple(decisions))


def _local_facts(
    values: dict[str, Any], machine: LocalMachine, config_dirs: Sequence[Path]
) -> dict[str, Any]:
    """Device, devices per node and their facts on this machine."""
    hardware, degrees = values["hardware"], _pinned_degrees(values)
    wanted = hardware.get("gpus_per_node")
    pinned = math.prod(degree for degree in degrees if degree)
    asked = wanted if isinstance(wanted, int) else pinned
    device = hardware.get("device")
    if device == "auto":
        device = "cuda" if machine.gpus and len(machine.gpus) >= asked else "cpu"
    if device == "cuda":
        per_node = asked if wanted or all(degrees) else len(machine.gpus)
        facts = _gpu_facts(machine, config_dirs)
    else:
        per_node = asked if wanted or all(degrees) else _cpu_processes(machine.cores, pinned)
        facts = cpu_facts(machine, per_node)
    found = f"{len(machine.gpus)} GPUs, {machine.cores} cores"
    decision = f"hardware=local: {per_node} {device} processes (found {found})"
    return facts | {"device": device, "gpus_per_node": per_node, "decision": decision}


def _cpu_processes(cores: int, pinned: int) -> int:
    """Processes that open degrees may use: about one per core, at least 2, at most 8 or so.

    _cpu_processes(2, 1) -> 2;  _cpu_processes(16, 3) -> 9
    """
    return pinned * math.ceil(max(2, min(8, cores)) / pinned)


def _pinned_degrees(values: dict[str, Any]) -> list[int | None]:
    parallelism = values.get("parallelism")
    given = [parallelism.get(axis) for axis in ("tp", "cp", "pp", "dp")] if parallelism else []
    return [degree if isinstance(degree, int) and degree > 0 else None for degree in given]


def _gpu_facts(machine: LocalMachine, config_dirs: Sequence[Path]) -> dict[str, Any]:
    """Facts of a known GPU from conf/hardware; of another one, A100's speeds and its own memory."""
    if not machine.gpus:
        raise ConfigError([_no_gpu()])
    gpu = machine.gpus[0]
    option = gpu_option(gpu.name) or "a100_80gb"
    node = {"a100_80gb": "hgx_a100", "b200_sxm": "hgx_b200"}.get(option, "hgx_h100")
    known = compose_run(
        ["hardware=h100x8", f"hardware/gpu={option}", f"hardware/node={node}"], config_dirs
    ).values["hardware"]
    known["gpu"] |= {"name": gpu.name, "memory_bytes": gpu.memory_bytes}
    known["node"]["host_memory_bytes"] = machine.memory_bytes
    return {"gpu": known["gpu"], "node": known["node"]}


def _no_gpu() -> Finding:
    return Finding(
        field="hardware.device",
        value="cuda",
        rule="no-local-gpu",
        reason="this machine has no NVIDIA GPU that its driver shows",
        legal=("cpu", "auto"),
        fix="hardware.device=cpu",
    )


def _with_facts(values: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Detected facts under what the user gave: a value in the config wins."""
    if not facts:
        return values
    hardware = dict(values["hardware"])
    for key in ("gpu", "node", "gpus_per_node"):
        if hardware.get(key) is None:
            hardware[key] = facts[key]
        elif isinstance(hardware[key], dict):
            hardware[key] = facts[key] | hardware[key]
    hardware["device"] = facts["device"]
    return values | {"hardware": hardware}


def _suitable_model(values: dict[str, Any], facts: dict[str, Any]) -> str:
    hardware = (values.get("hardware") or {}) | {key: facts[key] for key in facts if facts[key]}
    gpu = hardware.get("gpu") or {}
    try:
        devices = int(hardware.get("num_nodes") or 1) * int(hardware.get("gpus_per_node") or 1)
        memory = devices * int(gpu.get("memory_bytes") or 0)
    except (TypeError, ValueError):
        memory = 0  # The schema names the wrong value later.
    return choose_model(str(hardware.get("device")), memory)


def _hardware_words(values: dict[str, Any], facts: dict[str, Any]) -> str:
    name = values["hardware"].get("name")
    return f"{name} ({facts['device']})" if facts else f"{name}"
