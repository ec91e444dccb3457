"""One row of a table of measured runs, as a job to predict and as what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from launcher.config.record import Refused
from launcher.config.schema import Gpu, Hardware, Model, Network, Node
from launcher.plan.backtest_batch import read_batch
from launcher.plan.backtest_cells import (
    ALIASES,
    BadRow,
    Unsupported,
    read_cells,
    read_integer,
    read_number,
)
from launcher.plan.backtest_degrees import complete_degrees, split_modules
from launcher.plan.backtest_facts import (
    find_execution,
    gather_ahead,
    keep_gathered,
)
from launcher.plan.backtest_flops import contradictions, measured_step_s
from launcher.plan.backtest_hardware import (
    Devices,
    find_devices,
    stated_bandwidth,
    stated_memory,
    stated_taper,
)
from launcher.plan.backtest_model import read_model
from launcher.plan.backtest_odd import check_trains_all, not_understood, take_out_of_memory
from launcher.plan.backtest_programs import find_program, unknown_program
from launcher.plan.backtest_words import (
    SHARDED,
    find_schedule,
    named_stage,
    row_schedule,
    stated_chunks,
    zero_stage,
)
from launcher.plan.execution import Execution, Job
from launcher.plan.records import Layout
from launcher.plan.schedule import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What conf/ knows of devices and models, by file name."""

    gpus: Mapping[str, Gpu] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row, ready to be predicted and compared."""

    id: str
    source: str
    group: tuple[str, ...]
    """Rows that share it differ in the layout only."""
    job: Job
    step_s: float | None
    memory_bytes: int | None
    did_not_fit: bool
    assumed: tuple[str, ...] = ()
    """What its cells do not say, and how it was taken."""


def read_row(row: Mapping[str, str | None], facts: Facts) -> Measured:
    """Raises Unsupported or BadRow."""
    cells = read_cells(row)
    check_trains_all(cells)
    did_not_fit = take_out_of_memory(cells)
    assumed: list[str] = []
    cells = complete_degrees(split_modules(cells, assumed), assumed)
    if missing := [column for column in ("gpu", "gpus") if not cells[column]]:
        raise Unsupported(f"not published: {', '.join(missing)}")
    try:
        model = read_model(cells, facts.models, assumed)
    except Refused as error:  # a size beyond those of any model
        raise BadRow(_beyond(error)) from None
    hardware_names = find_devices(cells)
    if hardware_names is None or hardware_names.gpu not in facts.gpus:
        raise Unsupported(f"no facts of gpu={cells['gpu']} in conf/hardware/gpu")
    layout = _layout(cells, model, hardware_names.gpus_per_node, assumed)
    hardware = _hardware(cells, layout, facts, hardware_names, assumed)
    execution = find_execution(cells, layout, model.num_layers, hardware)
    assumed += filter(None, [unknown_program(cells)])
    assumed += _left_open(cells, layout, execution)
    assumed += not_understood(cells, execution, layout.zero_stage)
    if "bf16" in cells["precision"].lower() and hardware.gpu and not hardware.gpu.has_bf16:
        assumed.append(f"precision=float16: {hardware.gpu.name} has no bfloat16")
    if execution.weight_bytes == 4 and layout.zero_stage < 3:
        execution = keep_gathered(execution, layout.pp)
    if layout.zero_stage == 3:
        execution = gather_ahead(execution, cells)
    job = Job(model=model, hardware=hardware, layout=layout, execution=execution)
    assumed += contradictions(cells, job)
    memory = read_number(cells, "mem_gib")
    numbers = {"gpus": str(layout.world_size), "seq": str(layout.sequence_length)}
    names = ("source", "model", "gpu", "gpus", "seq", "precision")
    return Measured(
        id=cells["id"],
        source=cells["source"],
        group=tuple(numbers.get(name, cells[name]) for name in names),
        job=job,
        step_s=measured_step_s(cells, job),
        memory_bytes=None if memory is None else round(memory * 2**30),
        did_not_fit=did_not_fit,
        assumed=tuple(assumed),
    )


def _left_open(cells: Mapping[str, str], layout: Layout, execution: Execution) -> list[str]:
    """What empty cells of the layout and of kernels are taken for."""
    taken = {
        "recompute": execution.recompute,
        "precision": execution.matmul,
        "sp": ("yes" if execution.sequence_parallel else "no") if layout.tp > 1 else "",
        "vpp": str(layout.vpp) if layout.vpp > 1 else "",
    }
    return [f"{name}={value}" for name, value in taken.items() if value and not cells[name]]


def _beyond(error: Refused) -> str:
    """`layers=5000: input should be less than or equal to 1000`, from what the schema found."""
    first = error.details[0]
    name = str(first["loc"][-1])
    columns = {"ffn_hidden_size": "ffn", "max_sequence_length": "seq"}
    column = columns.get(name) or ALIASES.get(name, name)
    return f"{column}={first['input']}: {first['msg'].lower()}"


MOST_ACTIONS = 2_000_000
"""Forward and backward passes of all stages that a prediction walks through."""


def _layout(cells: Mapping[str, str], model: Model, per_node: int, assumed: list[str]) -> Layout:
    tp, pp, cp = (read_integer(cells, name, 1) for name in ("tp", "pp", "cp"))
    ep = read_integer(cells, "ep", 1)
    gpus = read_integer(cells, "gpus", 1)
    if gpus % (tp * pp * cp):
        raise BadRow(f"gpus={gpus}: not a multiple of tp x pp x cp = {tp * pp * cp}")
    dp = gpus // (tp * pp * cp)
    if (stated := read_integer(cells, "dp", dp)) not in (dp, dp * cp) and stated * ep != dp:
        raise BadRow(f"dp={cells['dp']}: gpus / (tp x pp x cp) is {dp}")
    if model.num_heads % tp:
        raise BadRow(f"tp={tp}: does not divide heads={model.num_heads}")
    length = read_integer(cells, "seq", 1)
    if length % cp:
        raise BadRow(f"cp={cp}: does not divide seq={length}")
    _check_experts(model, ep, dp * cp * tp)
    vpp = _chunks(cells, pp, model.num_layers) if pp > 1 else 1
    if model.num_layers < pp * vpp - (2 if vpp > 1 else 0):  # the ends may have a chunk without any
        raise BadRow(f"pp={pp}, vpp={vpp}: more chunks than layers={model.num_layers}")
    batch = read_batch(cells, dp, pp, length, assumed)
    count = batch.count
    if pp * vpp * count > MOST_ACTIONS:
        raise Unsupported(f"{count} microbatches in {pp * vpp} chunks are too many to walk through")
    per_node = min(gpus, read_integer(cells, "gpus_per_node", per_node))
    stage = _zero_stage(cells, dp, pp, assumed)
    return Layout(
        world_size=gpus, nodes=-(-gpus // per_node), gpus_per_node=per_node,
        tp=tp, cp=cp, ep=ep, pp=pp, vpp=vpp, dp=dp,
        zero_stage=stage,
        micro_batch_size=batch.micro, num_microbatches=count, global_batch_size=batch.samples,
        sequence_length=length,
        schedule=find_schedule(dict(cells), vpp) if pp > 1 else "1f1b",
        recompute=cells["recompute"],
        order=("tp", "cp", "dp", "pp"),
    )  # fmt: skip


def _chunks(cells: Mapping[str, str], pp: int, num_layers: int) -> int:
    """By the cell, by words, or as the program cuts the stages that it interleaves.

    A schedule that has a number of its own has it whatever the row says: both of its directions
    are chunks, of which the stage's memory is made up.
    """
    program, schedule = find_program(dict(cells)), row_schedule(dict(cells))
    default = stated_chunks(dict(cells))
    if default is None and schedule == INTERLEAVED:
        each = program.layers_per_chunk
        default = 2 if each is None else -(-num_layers // (pp * each))
    vpp = read_integer(cells, "vpp", default or 1)
    return SCHEDULES[find_schedule(dict(cells), vpp)].chunks or vpp


INTERLEAVED = "interleaved_1f1b"


def _zero_stage(cells: Mapping[str, str], dp: int, pp: int, assumed: list[str]) -> int:
    """By the cell, or as the program has it where nobody sets it."""
    said = cells["zero_or_fsdp"].lower()
    if said and said not in SHARDED:
        return zero_stage(said, pp)
    if dp == 1:
        assumed.append("no dp to shard over")
        return 0
    named = named_stage(f"{cells['source']} {cells['id']}")
    stage = find_program(dict(cells)).default_stage if named is None else named
    stage = max(stage, 1) if said else stage
    if stage == 3 and pp > 1:
        stage = 2
    what = ("nothing", "optimizer state", "gradients and optimizer state", "all state")[stage]
    assumed.append(f"{what} sharded over dp")
    return stage


def _check_experts(model: Model, ep: int, ranks: int) -> None:
    if ep == 1:
        return
    if model.experts is None:
        raise BadRow(f"ep={ep}: the model has no experts")
    if model.experts.num_experts % ep or ranks % ep:
        number = model.experts.num_experts
        raise BadRow(f"ep={ep}: does not divide {number} experts and {ranks} ranks")


def _hardware(
    cells: Mapping[str, str], layout: Layout, facts: Facts, names: Devices, assumed: list[str]
) -> Hardware:
    fabric = facts.networks[names.network]
    if "roce" in cells["notes"].lower():
        fabric = facts.networks["roce_100"].model_copy(update={"bandwidth": fabric.bandwidth})
    if stated := stated_bandwidth(cells, layout.gpus_per_node):
        fabric = fabric.model_copy(update={"bandwidth": stated})
    if taper := stated_taper(cells):
        fabric = fabric.model_copy(update={"oversubscription": taper})
    gpu = facts.gpus[names.gpu]
    if memory := stated_memory(cells["gpu"], gpu):
        assumed.append(f"gpu={cells['gpu']}: as {gpu.name} but for its memory")
        gpu = gpu.model_copy(update={"memory_bytes": memory})
    return Hardware(
        name=cells["gpu"], num_nodes=layout.nodes, gpus_per_node=layout.gpus_per_node,
        gpu=gpu, node=facts.nodes[names.node], network=fabric,
    )  # fmt: skip


def for_fit(job: Job) -> Job:
    """The job with all that a device must hold."""
    return replace(job, execution=_whole(job.execution))


def _whole(execution: Execution) -> Execution:
    return replace(execution, reserved=True, process=True, under_pressure=True)
