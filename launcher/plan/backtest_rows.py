"""One row of a table of measured runs, as a job to predict and as what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.config.schema import Gpu, Hardware, Model, Network, Node
from launcher.plan.backtest_facts import (
    find_devices,
    find_execution,
    find_program,
    find_schedule,
    keep_gathered,
    stated_bandwidth,
)
from launcher.plan.costs import count_parameters
from launcher.plan.execution import Execution, Job
from launcher.plan.kernels import peak_flops
from launcher.plan.records import Layout
from launcher.plan.work import forward_flops_per_token, model_flops_per_token

COLUMNS = (
    "id", "source", "source_url_or_repo_path", "model", "params_b", "layers", "hidden", "heads",
    "kv_heads", "ffn", "vocab", "seq", "gpu", "gpus", "gpus_per_node", "tp", "pp", "vpp", "cp",
    "ep", "dp", "zero_or_fsdp", "sp", "micro_batch", "global_batch", "recompute", "precision",
    "tflops_per_gpu", "tokens_per_s_per_gpu", "mfu", "step_time_s", "mem_gib", "notes",
)  # fmt: skip
"""Of a table; absent ones are empty cells."""


class Unsupported(ValueError):
    """The row cannot be predicted; the message says why."""


class BadRow(ValueError):
    """A cell of the row is broken; the message names it."""


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


def read_row(row: Mapping[str, str | None], facts: Facts) -> Measured:
    """Raises Unsupported or BadRow."""
    cells = read_cells(row)
    tag = re.match(r"\[([A-Za-z]+)\]", cells["notes"])
    tags = tag[1].upper() if tag else ""
    required = ("layers", "hidden", "heads", "vocab", "seq", "gpu", "gpus", "global_batch")
    if missing := [column for column in required if not cells[column]]:
        raise Unsupported(f"not published: {', '.join(missing)}")
    model = _model(cells, facts)
    layout = _layout(cells, model)
    execution = find_execution(cells, layout.tp, layout.vpp, model.num_layers)
    if execution.weight_bytes == 4 and layout.zero_stage < 3:
        execution = keep_gathered(execution, layout.pp)
    hardware = _hardware(cells, layout, facts)
    job = Job(model=model, hardware=hardware, layout=layout, execution=execution)
    memory = read_number(cells, "mem_gib")
    names = ("source", "model", "gpu", "gpus", "seq", "precision")
    return Measured(
        id=cells["id"],
        source=cells["source"],
        group=tuple(cells[name] for name in names),
        job=job,
        step_s=_measured_step_s(cells, job),
        memory_bytes=None if memory is None else round(memory * 2**30),
        did_not_fit="O" in tags,
    )


def read_cells(row: Mapping[str, str | None]) -> dict[str, str]:
    """Every column, empty where the table has none."""
    return {column: (row.get(column) or "").strip() for column in COLUMNS}


def _integer(cells: Mapping[str, str], name: str, default: int) -> int:
    value = read_number(cells, name)
    if value is None:
        return default
    if value != int(value) or value < 1:
        raise BadRow(f"{name}={cells[name]}: not a whole number from 1")
    return int(value)


def read_number(cells: Mapping[str, str], name: str) -> float | None:
    """A positive number, or None where the cell is empty."""
    if not cells[name]:
        return None
    try:
        value = float(cells[name])
    except ValueError:
        raise BadRow(f"{name}={cells[name]}: not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise BadRow(f"{name}={cells[name]}: not a positive number")
    return value


def _model(cells: Mapping[str, str], facts: Facts) -> Model:
    """Dimensions of the row; of the MLP's and the head's kinds those whose size is published."""
    heads, hidden = _integer(cells, "heads", 1), _integer(cells, "hidden", 1)
    known = _known_model(cells["model"], facts)
    common: dict[str, Any] = {
        "name": cells["model"] or cells["id"],
        "num_layers": _integer(cells, "layers", 1),
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": _integer(cells, "kv_heads", heads),
        "ffn_hidden_size": _integer(cells, "ffn", 4 * hidden),
        "vocab_size": _integer(cells, "vocab", 1),
        "max_sequence_length": _integer(cells, "seq", 1),
    }
    if hidden % heads and not (known and (known.head_dim or known.latent)):
        raise BadRow(f"hidden={hidden}: not a multiple of heads={heads}")
    if known and (known.experts or known.latent):
        experts = known.experts
        dense = re.search(r"(\d+) dense \+ \d+ moe", cells["notes"].lower())
        if experts and dense:
            experts = experts.model_copy(update={"num_dense_layers": int(dense[1])})
        return known.model_copy(update=common | {"experts": experts})
    if re.search(r"moe|mixtral|x\d+b|-a\d+b|deepseek", cells["model"].lower()):
        raise Unsupported(f"experts of {cells['model']} are neither in the table nor in conf/model")
    return _fit_kind(common, read_number(cells, "params_b"))


def _known_model(name: str, facts: Facts) -> Model | None:
    """A model of conf/model whose name this one starts with, `_`, `-` and `.` aside."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    found = [key for key in facts.models if plain.startswith(re.sub(r"[^a-z0-9]", "", key))]
    return facts.models[max(found, key=len)] if found else None


def _fit_kind(common: dict[str, Any], params_b: float | None) -> Model:
    llama = {"norm": "rmsnorm", "activation": "swiglu", "position": "rope"}
    gpt = {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
    plain = {"norm": "rmsnorm", "activation": "relu", "position": "rope"}
    kinds: list[dict[str, Any]] = [
        gpt | {"tie_embeddings": True}, llama, llama | {"tie_embeddings": True}, plain,
    ]  # fmt: skip
    models = [Model.model_validate(common | kind) for kind in kinds]
    if params_b is None:
        return models[0] if common["ffn_hidden_size"] == 4 * common["hidden_size"] else models[1]
    return min(models, key=lambda model: abs(count_parameters(model) / 1e9 - params_b))


def _layout(cells: Mapping[str, str], model: Model) -> Layout:
    tp, pp, cp = (_integer(cells, name, 1) for name in ("tp", "pp", "cp"))
    gpus = _integer(cells, "gpus", 1)
    if gpus % (tp * pp * cp):
        raise BadRow(f"gpus={gpus}: not a multiple of tp x pp x cp = {tp * pp * cp}")
    dp, batch = gpus // (tp * pp * cp), _integer(cells, "global_batch", 1)
    if _integer(cells, "dp", dp) != dp:
        raise BadRow(f"dp={cells['dp']}: gpus / (tp x pp x cp) is {dp}")
    if model.num_heads % tp:
        raise BadRow(f"tp={tp}: does not divide heads={model.num_heads}")
    vpp = _integer(cells, "vpp", 2 if "interleaved" in cells["id"] else 1) if pp > 1 else 1
    micro = _integer(cells, "micro_batch", _default_micro_batch(cells, batch // dp, pp))
    if batch % (micro * dp):
        raise BadRow(f"global_batch={batch}: not a multiple of micro_batch x dp = {micro * dp}")
    count = batch // (micro * dp)
    per_node = min(gpus, _integer(cells, "gpus_per_node", 8))
    return Layout(
        world_size=gpus, nodes=-(-gpus // per_node), gpus_per_node=per_node,
        tp=tp, cp=cp, ep=_integer(cells, "ep", 1), pp=pp, vpp=vpp, dp=dp,
        zero_stage=zero_stage(cells["zero_or_fsdp"].lower(), pp),
        micro_batch_size=micro, num_microbatches=count, global_batch_size=batch,
        sequence_length=_integer(cells, "seq", 1),
        schedule=find_schedule(dict(cells), vpp), recompute=cells["recompute"],
        order=("tp", "cp", "dp", "pp"),
    )  # fmt: skip


def _default_micro_batch(cells: Mapping[str, str], samples: int, num_stages: int) -> int:
    """One sample, or by the program's default as many microbatches as there are stages."""
    if not find_program(dict(cells)).microbatch_per_stage or num_stages == 1:
        return 1
    return max(1, samples // num_stages) if samples % num_stages == 0 else 1


def zero_stage(text: str, pp: int) -> int:
    """Of `zero1(dist-opt)`, `fsdp2(zero3)`, `fsdp`, `0`."""
    if found := re.search(r"zero-?(\d)", text):
        return int(found[1])
    if "fsdp" in text or "hsdp" in text:
        return 3 if pp == 1 else 2  # inside a pipeline weights stay gathered for the step
    return 1 if "dist" in text else 0


def _hardware(cells: Mapping[str, str], layout: Layout, facts: Facts) -> Hardware:
    devices = find_devices(dict(cells))
    if devices is None or devices[0] not in facts.gpus:
        raise Unsupported(f"no facts of gpu={cells['gpu']} in conf/hardware/gpu")
    gpu, node, network = devices
    fabric = facts.networks[network]
    stated = stated_bandwidth(dict(cells), layout.gpus_per_node)
    if "roce" in cells["notes"].lower():
        fabric = facts.networks["roce_100"].model_copy(update={"bandwidth": fabric.bandwidth})
    if stated:
        fabric = fabric.model_copy(update={"bandwidth": stated})
    return Hardware(
        name=cells["gpu"], num_nodes=layout.nodes, gpus_per_node=layout.gpus_per_node,
        gpu=facts.gpus[gpu], node=facts.nodes[node], network=fabric,
    )  # fmt: skip


def _measured_step_s(cells: Mapping[str, str], job: Job) -> float | None:
    """Given, or from tokens/s, TFLOP/s or MFU by the source's convention."""
    if (given := read_number(cells, "step_time_s")) is not None:
        return given
    layout = job.layout
    tokens = layout.global_batch_size * layout.sequence_length / layout.world_size
    if (rate := read_number(cells, "tokens_per_s_per_gpu")) is not None:
        return tokens / rate
    if (rate := read_number(cells, "tflops_per_gpu")) is not None:
        return tokens * published_flops_per_token(cells, job) / (rate * 1e12)
    if (share := read_number(cells, "mfu")) is not None:
        assert job.hardware.gpu is not None
        peak = peak_flops(job.hardware.gpu, job.execution.matmul)
        return tokens * published_flops_per_token(cells, job) / (share * peak)
    return None


RECOMPUTE_COUNTED = r"narayanan|2104\.04473|bloom|bigscience|mt-nlg|2201\.11990|neox|2304\.11277"
"""Sources whose TFLOP/s count the recomputed forward of the blocks (SC21, equation 3)."""


def published_flops_per_token(cells: Mapping[str, str], job: Job) -> float:
    """As the source counts them: attention whole, and recomputation where it says so."""
    words = f"{cells['source']} {cells['source_url_or_repo_path']} {cells['notes']}".lower()
    model, length = job.model, job.layout.sequence_length
    is_causal = re.search(r"(?<!non-)causal attention", words) is not None
    total = model_flops_per_token(model, length, causal=is_causal)
    says_so = re.search(r"(include|count)s? (the )?recompute|hardware flop", words)
    if job.execution.recompute == "full" and (re.search(RECOMPUTE_COUNTED, words) or says_so):
        total += job.execution.recompute_share * forward_flops_per_token(
            model, length, causal=is_causal, with_head=False
        )
    return total


def for_fit(job: Job) -> Job:
    """The job with all that a device must hold."""
    return replace(job, execution=_whole(job.execution))


def _whole(execution: Execution) -> Execution:
    return replace(execution, reserved=True, process=True)
