"""From overrides to one checked run: compose, choose what was left to us, validate, judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config.choose_model import choose_model
from launcher.config.data_files import check_data_files, with_absolute_paths
from launcher.config.kernel_table import with_kernels
from launcher.config.local_hardware import LocalMachine, cpu_facts, detect_machine, gpu_options
from launcher.config.quick_compose import compose_values
from launcher.config.record import MOST_PER_NODE
from launcher.config.rules import check_run
from launcher.config.schedule_lines import with_schedule_lines
from launcher.config.schema import Run
from launcher.config.tracker_check import check_tracker_here
from launcher.config.validate import Wrote, validate_run
from launcher.errors import ConfigError, Finding
from launcher.frozen import frozen

if TYPE_CHECKING:
    from launcher.config.written import Written

Check = Callable[[Run], Iterable[Finding]]
Usual = Callable[[frozenset[str]], Mapping[str, Any]]


@frozen
class Loaded:
    """A run that passed the schema and every rule, and what was chosen on the way."""

    run: Run
    decisions: tuple[str, ...]
    """What the user left open and was chosen here, a line each."""


def load_run(
    overrides: Sequence[str],
    config_dirs: Sequence[Path] = (),
    machine: Callable[[], LocalMachine] = detect_machine,
    also: Check = lambda run: (),
) -> Loaded:
    """Compose and check a run; `also` is a check of the caller's own.

    Raises ConfigError with every finding at once.
    """
    # 1. What the YAML files and the command line say.
    composed = compose_values(overrides, config_dirs)
    decisions = list(composed.notes)
    # 2. hardware=local is this machine.
    local = _local_facts(composed.values, machine, config_dirs)
    values = _with_facts(composed.values, local)
    # 3. A model that suits the hardware, where none is named.
    if composed.choices.get("model") == "auto":
        name = _suitable_model(values)
        # An option that is named twice would be left to Hydra.
        others = [line for line in overrides if line != "model=auto"]
        composed = compose_values([*others, f"model={name}"], config_dirs)
        values = _with_facts(composed.values, local)
        decisions.append(f"model={name}: suits {_hardware_words(values)}")
    if local:
        decisions.append(local.decision)
    # 4. The schema, then the rules.
    run = _judge(
        values,
        [*composed.findings, *(local.findings if local else ())],
        composed.unknown_groups,
        _wrote(overrides, composed.choices, config_dirs),
        _usual(overrides, config_dirs),
        also,
    )
    return Loaded(run=run, decisions=tuple(decisions))


def load_resumed(
    frozen: Run,
    overrides: Sequence[str],
    config_dirs: Sequence[Path] = (),
    machine: Callable[[], LocalMachine] = detect_machine,
    also_open: Set[str] = frozenset(),
) -> Loaded:
    """The frozen run under overrides, checked as `load_run` does.

    What the overrides make open is open again (`reopen_values`), and of `also_open` the keys that
    no override names. Raises ConfigError likewise, and for forbidden changes.
    """
    # What only resuming needs; Hydra among it, which a plain command line can do without.
    from launcher.config.amend import amend_values
    from launcher.config.reopen import reopen_values
    from launcher.config.resume import find_changes, readable_part, refuse_changes

    before = frozen.model_dump(mode="json")
    amended = amend_values(before, overrides, config_dirs)
    values = reopen_values(before, amended.values, amended.named, also_open)
    is_local_again = _group(values, "hardware").get("gpus_per_node") is None
    local = _local_facts(values, machine, config_dirs) if is_local_again else None
    run = _judge(
        _with_facts(values, local),
        [
            *amended.findings,
            *(local.findings if local else ()),
            *refuse_changes(find_changes(frozen, readable_part(frozen, values))),
        ],
        amended.unknown_groups,
        _wrote(overrides, amended.choices, config_dirs),
        lambda keys: before,
    )
    return Loaded(run=run, decisions=(local.decision,) if local else ())


def _wrote(
    overrides: Sequence[str], choices: Mapping[str, str | None], config_dirs: Sequence[Path]
) -> Wrote:
    """What a person typed for a key, looked up where a value is refused."""

    def wrote(field: str, given: object) -> Written | None:
        from launcher.config.written import find_written

        return find_written(field, given, overrides, choices, config_dirs)

    return wrote


def _usual(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Usual:
    """What a key has without its override, looked up where a value is refused."""

    def usual(keys: frozenset[str]) -> Mapping[str, Any]:
        from launcher.config.usual import values_without

        return values_without(keys, overrides, config_dirs)

    return usual


def _judge(
    values: dict[str, Any],
    findings: Sequence[Finding],
    unknown_groups: Set[str],
    written: Wrote,
    usual: Usual,
    also: Check = lambda run: (),
) -> Run:
    """The schema, the rules and the files; ConfigError with all of it and what was there."""
    values, unreadable = with_schedule_lines(values)
    values, unread_kernels = with_kernels(values)
    unreadable += unread_kernels
    run, refused = validate_run(values, written)
    run = with_absolute_paths(run) if run is not None else None
    found = [*findings, *unreadable, *refused]
    if run is not None and not unknown_groups:
        found += [*check_run(run), *check_data_files(run), *check_tracker_here(run), *also(run)]
    else:
        from launcher.config.partial import check_partial, check_readable, partial_run

        unreadable_keys = {finding.field for finding in refused} | unknown_groups
        part = partial_run(values, unreadable_keys)
        found += check_partial(values, unreadable_keys)
        found += check_readable(check_data_files, part) + check_readable(also, part)
    if found or run is None:
        from launcher.config.usual import with_usual_values

        raise ConfigError(with_usual_values(found, usual))
    return run


@frozen
class _LocalFacts:
    """What this machine puts under `hardware`."""

    device: str
    gpus_per_node: int
    gpu: dict[str, Any]
    node: dict[str, Any]
    decision: str
    findings: tuple[Finding, ...] = ()


def _local_facts(
    values: dict[str, Any], machine: Callable[[], LocalMachine], config_dirs: Sequence[Path]
) -> _LocalFacts | None:
    """Device, devices per node and their facts on this machine; None for other hardware."""
    hardware, degrees = _group(values, "hardware"), _pinned_degrees(values)
    if hardware.get("name") != "local":
        return None
    here = machine()
    wanted = hardware.get("gpus_per_node")
    # Of more than a node can have, the degrees are at fault: a rule names them.
    pinned = min(MOST_PER_NODE, math.prod(degree for degree in degrees if degree))
    asked = wanted if isinstance(wanted, int) and wanted > 0 else pinned
    given = hardware.get("device")
    device = "cpu" if given == "cpu" or (len(here.gpus) < asked and given != "cuda") else "cuda"
    is_closed = wanted is not None or all(degrees)
    if device == "cuda" and here.gpus:
        per_node = asked if is_closed else len(here.gpus)
        facts = _gpu_facts(here, config_dirs)
    else:
        per_node = asked if is_closed else _cpu_processes(here.cores, pinned)
        facts = cpu_facts(here, per_node)
        if device == "cuda":  # refused, and for that alone
            facts["gpu"]["core_share"] = None
    return _LocalFacts(
        device=device,
        gpus_per_node=per_node,
        gpu=facts["gpu"],
        node=facts["node"],
        decision=_decision(here, device, per_node, given),
        findings=(_no_gpu(),) if device == "cuda" and not here.gpus else (),
    )


def _decision(here: LocalMachine, device: str, per_node: int, given: Any) -> str:
    """hardware=local: 4 cpu processes (1 GPU, 8 cores; 4 processes need 4 GPUs)"""
    found = f"{len(here.gpus)} GPU{'' if len(here.gpus) == 1 else 's'}, {here.cores} cores"
    if device == "cpu" and here.gpus and given != "cpu":
        found += f"; {per_node} processes would need {per_node} GPUs"
    if device == "cuda" and here.gpus and gpu_options(here.gpus[0].name) is None:
        found += f"; no facts of {here.gpus[0].name}, so speeds of A100 on PCIe 4.0"
    return f"hardware=local: {per_node} {device} process{'' if per_node == 1 else 'es'} ({found})"


def _cpu_processes(cores: int, pinned: int) -> int:
    """Processes that open degrees may use: about one per core, at least 2, at most 8 or so.

    _cpu_processes(2, 1) -> 2;  _cpu_processes(16, 3) -> 9
    """
    return pinned * math.ceil(max(2, min(8, cores)) / pinned)


def _group(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The keys of a group; none where something else stands there, which the schema refuses."""
    group = values.get(name)
    return group if isinstance(group, dict) else {}


def _pinned_degrees(values: dict[str, Any]) -> list[int | None]:
    parallelism = _group(values, "parallelism")
    given = [parallelism.get(axis) for axis in ("tp", "cp", "pp", "dp")]
    return [degree if isinstance(degree, int) and degree > 0 else None for degree in given]


def _gpu_facts(machine: LocalMachine, config_dirs: Sequence[Path]) -> dict[str, Any]:
    """Facts of a known GPU from conf/hardware; of another one, A100's speeds on PCIe and its own
    memory.
    """
    gpu = machine.gpus[0]
    option, node = gpu_options(gpu.name) or ("a100_80gb", "pcie4")
    known = compose_values(
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


def _with_facts(values: dict[str, Any], local: _LocalFacts | None) -> dict[str, Any]:
    """Detected facts under what the user gave: a value in the config wins."""
    if local is None:
        return values
    detected = {"gpus_per_node": local.gpus_per_node, "gpu": local.gpu, "node": local.node}
    hardware = _under(_group(values, "hardware"), detected)
    if hardware.get("device") in (None, "auto"):
        hardware["device"] = local.device
    return values | {"hardware": hardware}


def _under(given: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Facts where nothing is given, in nested groups too."""
    merged = dict(given)
    for key, fact in facts.items():
        value = given.get(key)
        if value is None:
            merged[key] = fact
        elif isinstance(value, dict) and isinstance(fact, dict):
            merged[key] = _under(value, fact)
    return merged


def _suitable_model(values: dict[str, Any]) -> str:
    hardware = _group(values, "hardware")
    numbers = [hardware.get("num_nodes"), hardware.get("gpus_per_node")]
    numbers.append(_group(hardware, "gpu").get("memory_bytes"))
    # The schema names a wrong value later.
    memory = math.prod(number if isinstance(number, int) else 0 for number in numbers)
    return choose_model(str(hardware.get("device")), memory)


def _hardware_words(values: dict[str, Any]) -> str:
    hardware = _group(values, "hardware")
    is_local = hardware.get("name") == "local"
    return f"{hardware.get('name')}" + (f" ({hardware.get('device')})" if is_local else "")
