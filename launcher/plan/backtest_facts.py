"""What a row of a table says in words: kernels, formats, sharding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.config.schema import Gpu, Hardware
from launcher.plan.backtest_cells import Unsupported, read_number
from launcher.plan.backtest_programs import PIPELINE_STATE, find_program, own_words
from launcher.plan.backtest_words import NO, read_recompute
from launcher.plan.execution import Execution
from launcher.plan.records import Layout
from launcher.plan.schedule import SCHEDULES


def find_execution(
    row: dict[str, str], layout: Layout, num_layers: int, hardware: Hardware
) -> Execution:
    """The program's execution with what this row says of it."""
    tp, vpp = layout.tp, layout.vpp
    program = find_program(row)
    execution, words = program.execution, f"{row['id']} {row['notes']}".lower()
    changes: dict[str, Any] = {}
    is_looped = vpp > 1 and SCHEDULES[layout.schedule].placement == "loop"
    if program.is_modern and is_looped:  # Megatron-Core overlaps exchanges of interleaved stages
        changes["overlap_p2p"] = True
    assert hardware.gpu is not None
    changes |= _attention(row, words, execution, hardware.gpu)
    if re.search(r"(?<![a-z])eager", words):
        changes["fusion"] = "eager"
    elif re.search(r"(?<![a-z])compile", words) and not re.search(NOT_COMPILED, words):
        changes["fusion"] = "compiled"
    changes |= _overlaps(words) | _dispatch(words)
    if re.search(r"(?<!no )(?<!without )(?:fused (?:ce|cross)|cut cross[- ]entropy|liger)", words):
        changes["fused_loss"] = True
    if re.search(r"(?:no|without) dropout|dropout[ =:]+0(?!\.?0*[1-9])", words):
        changes["dropout_masks"] = False
    changes |= _cp_mode(" ".join((words, *(row[name].lower() for name in CP_WORDS))))
    changes |= _number_formats(row, hardware.gpu)
    if re.search(PARALLEL_BLOCK, words) or re.search(PARALLEL_MODELS, row["model"].lower()):
        changes["parallel_block"] = True
    given = row["sp"].lower()
    is_split = given not in NO if given else program.is_modern
    changes["sequence_parallel"] = tp > 1 and is_split
    if offload := _offload(words + " " + row["zero_or_fsdp"].lower()):
        changes |= {"offload": offload, "offloads_gradients": not program.has_own_fsdp}
    cell = re.sub(r"(?:allocated|reserved)\W{0,3}\d.*", "", row["mem_gib"].lower())
    # what is named behind it is beside
    metric = re.search(r"allocated|reserved|nvidia-smi", f"{cell} {words}")
    if metric is None or metric[0] != "nvidia-smi":
        changes |= {"reserved": metric is None or metric[0] == "reserved", "process": False}
    recompute, share = read_recompute(row["recompute"], num_layers, layout.pp, vpp)
    if recompute == "selective" and program.selects_operators:
        is_core = re.search("attn|attention|core", row["recompute"].lower())
        recompute = recompute if is_core else "operators"
    changes |= {"recompute": recompute, "recompute_share": share}
    changes["shard_size"] = _shard_size(row, layout, hardware.gpus_per_node or 1)
    return replace(execution, **changes)


def _attention(row: dict[str, str], words: str, execution: Execution, gpu: Gpu) -> dict[str, Any]:
    """Which kernel, where words, length or device of the row say another than the program."""
    is_long = (read_number(row, "cp") or 1) > 1 or (read_number(row, "seq") or 1) > LONGEST_SCORES
    is_recent = gpu.peak_flops.fp8 is not None  # such devices came after FlashAttention
    has_scores = execution.attention == "matrix"
    if re.search(NOT_FLASH, words):
        return {"attention": "matrix"}
    if re.search(r"flash[- ]?attention[- ]?3|fa3|cudnn", words):
        return {"attention": "cudnn"}
    if re.search(r"flash|xformers|memory[- ]efficient attention", words) or is_long:
        second = re.search(r"flash[- ]?att\w*[- ]?(?:v?2)(?![0-9])|fa-?2|fav2", words)
        return {"attention": "flash"} if has_scores or second else {}
    if has_scores and is_recent:
        return {"attention": "flash"}
    if re.search(NO_FLASH, gpu.name) and execution.fusion == "fused":
        return {"attention": "matrix"}
    return {}


def _overlaps(words: str) -> dict[str, Any]:
    """What runs beside the computing, and what is said not to."""
    found = {}
    if re.search(r"async[-_ ]?tp|tp[-_ ]comm[-_ ]overlap", words):
        found["overlap_tp"] = True
    if re.search(OVERLAP_EP, words):
        found["overlap_ep"] = True
    for axis in ("tp", "dp", "p2p", "ep"):
        if re.search(NO_OVERLAP, words) or re.search(NO_OVERLAP_OF.format(axis), words):
            found[f"overlap_{axis}"] = False
    return found


def _dispatch(words: str) -> dict[str, Any]:
    """How tokens travel to experts, where the row says so."""
    found: dict[str, Any] = {}
    if re.search(r"(?<![a-z])deep[-_ ]?ep(?![a-z])|flex[-_ ](?:token[-_ ])?dispatcher", words):
        found["sends_to_nodes"] = True
    limit = re.search(r"(?:at most|limited to|up to|max(?:imum)?) (\d+) nodes", words)
    if limit and int(limit[1]) > 0:
        found["most_expert_nodes"] = int(limit[1])
    return found


CP_WORDS = ("source", "source_url_or_repo_path", "sp", "cp")


def _cp_mode(words: str) -> dict[str, Any]:
    """How ranks that share a sequence exchange it, where the row says so."""
    if re.search(r"cp a2a|ulysses", words):
        return {"cp_mode": "ulysses"}
    if re.search(r"2407\.21783|(?:cp|kv|context)[^;,.]{0,20}all[- ]?gather", words):  # Llama 3
        return {"cp_mode": "all_gather"}
    return {"cp_mode": "ring"} if re.search(r"ring[- ]attention|(?:cp[ =]|\()ring", words) else {}


NOT_FLASH = (
    r"(?:no|not|without|w/o) flash|flash[- _]?att\w*(?: is)?[ =:]+(?:off|no\b|false|disabled|0)"
    r"|torch attention|unfused attention"
)

OVERLAP_EP = (
    r"dualpipe|overlap\w*[- _](?:\w+[- _])?(?:moe|ep|a2a|all[- ]?to[- ]?all|experts?)(?![a-z])"
    r"|(?<![a-z])(?:moe|ep|a2a|all[- ]?to[- ]?all|experts?)[- _](?:\w+[- _]){0,2}overlap"
)
"""In notes: exchanges with experts run beside the computing; DualPipe is made for that."""

NO_OVERLAP = (
    r"(?:no|without|w/o) (?:comm\w*(?:[-/ ]comp\w*)?[- ])?overlap"
    r"|(?<!tp )(?<!dp )(?<!ep )(?<!p2p )(?<!tp comm )(?<!dp comm )(?<!ep comm )(?<!p2p comm )"
    r"overlap (?:is )?(?:off|disabled)|not overlapped"
)
"""In notes: collectives wait for the computing."""

NO_OVERLAP_OF = (
    r"(?:no|without|w/o) {0}[- ](?:comm\w*[- ])?overlap"
    r"|{0}[- ](?:comm\w*[- ])?overlap (?:is )?(?:off|dis)"
)
"""In notes: those of one axis do."""

PARALLEL_BLOCK = (
    r"(?<!sequence )(?<!context )(?<!tensor )(?<!model )(?<!data )"
    r"parallel (?:attn|attention|block|residual|mlp)|gpt[-_]?j[-_ ]residual"
)
"""In notes: attention and MLP read the same input."""

PARALLEL_MODELS = r"falcon|(?<![a-z])palm(?![a-z])|gpt-?j(?![a-z])|neox|pythia"
"""Models whose blocks do."""

NOT_COMPILED = r"(?:no|not|without|w/o) (?:torch\.)?compile|compile\w*[ =:]+(?:off|false|none|no\b)"

NO_FLASH = "V100"
"""Devices for which FlashAttention and cuDNN's fused attention have no kernels: Megatron's and
DeepSpeed's programs write scores out there. torch has a kernel of its own that does not."""

LONGEST_SCORES = 8192
"""Tokens of a sequence beyond which, as where it is cut over cp, nobody writes all scores out."""


def _number_formats(row: Mapping[str, str], gpu: Gpu) -> dict[str, Any]:
    """What `fp8(delayed)`, `fp16`, `bf16-mixed`, `amp` and `fp32` say of kernels and state."""
    words = re.sub(r"[-_]", "", row["precision"].lower())
    words = re.sub(NOT_FP8, "", words)
    words = re.sub(OF_SUMS, "", words)
    known = "fp4|int8|int4|tf32|bf16|bfloat16|fp16|float16|half|amp|mixed"
    # Whatever else is named, products are what 8-bit formats are for, and then 16-bit ones.
    first = (
        re.search(r"(?<!u)f(?:p|loat)8|e4m3", words)
        or re.search(known, words)
        or re.search("fp32|float32|single", words)
    )
    kind = first[0] if first else ""
    if kind in ("fp4", "int8", "int4", "tf32"):
        raise Unsupported(f"precision={row['precision']}: no facts of its rates")
    if kind in ("fp8", "float8", "e4m3"):
        if gpu.peak_flops.fp8 is None:
            raise Unsupported(f"precision={row['precision']}: {gpu.name} has no 8-bit floats")
        return {"matmul": "fp8"}
    if kind in ("fp32", "float32", "single"):
        sizes = {"weight_bytes": 4, "gradient_bytes": 4, "state_bytes": 8}
        return {"matmul": "fp32", "element_bytes": 4, "reduce_bytes": 4, "gather_bytes": 4} | sizes
    return {}


NOT_FP8 = (
    r"(?:no|not|non|without|w/o) ?f(?:p|loat)8"
    r"|f(?:p|loat)8(?: is)?[ =:]+(?:off|no|none|false|disabled|unused)\b"
)

OF_SUMS = r"(?:fp|float)32 (?:main |master|grad|accum|optim|reduc|state|param|weight)\w*"
"""What is in 32 bits beside products in fewer."""


def _offload(words: str) -> str | None:
    """What waits in the node's RAM."""
    words = re.sub(OF_ACTIVATIONS, "", words)
    if re.search(r"\b(?:no|without|w/o)(?: cpu)? off-?load(?:ing)?(?! (?:of|to) )\b", words):
        return None
    words = re.sub(NO_OFFLOAD, "", words)
    if re.search(OF_WEIGHTS, words):
        return "parameters"
    return "optimizer" if re.search(r"off-?load", words) else None


OF_WEIGHTS = (
    r"(?:param|weight)\w*(?: (?:and|&|\+) optim\w*(?: states?)?)?[- _]off-?load|zero[- ]infinity"
    r"|off-?load\w*[- _(]*(?:of )?(?:optim\w*(?: states?)? ?(?:and|&|\+) ?)?(?:param|weight)"
    r"|cpu_offload|fsdp\W+cpu[- ]off-?load"
)
"""Of everything: FSDP's own option has no other meaning."""

NO_OFFLOAD = (
    r"\b(?:no|not|without|w/o)(?: \w+)?[- ]off-?load\w*"
    r"|[\w-]*off-?load\w*(?: is)?[ =:]+(?:off|no|none|false|disabled|0)\b"
)

OF_ACTIVATIONS = r"activation\w*[- ](?:cpu[- ])?off-?load\w*|off-?load\w* (?:of )?activation\w*"
"""Not of state."""


def _shard_size(row: Mapping[str, str], layout: Layout, per_node: int) -> int | None:
    """`hsdp(16-GPU groups)`, `MiCS` with `partition size 16` in notes; inside a node by default.

    `HSDP 4x16` is torch's mesh of them: 4 replicas of 16 shards.
    """
    text, ranks = row["zero_or_fsdp"].lower(), layout.dp * layout.cp
    notes = own_words(row["notes"]).lower()
    if layout.zero_stage and re.search(r"(?<![a-z])hsdp|hybrid[- _]shard", notes):
        text += " hsdp"
    if is_grouped := re.search(IN_GROUPS, text) is not None:
        text += " " + row["notes"].lower()
    if found := re.search(SHARDS, text):
        return int(next(filter(None, found.groups())))
    if is_grouped:
        replicas = re.search(r"(\d+) replicas|replica\w*[ =:]+(\d+)", text)
        if replicas and ranks % (number := int(replicas[1] or replicas[2])) == 0:
            return ranks // number
        mesh = re.search(r"(\d+) ?[x\u00d7*] ?(\d+)", text)
        if mesh and int(mesh[1]) * int(mesh[2]) == ranks:
            return int(mesh[2])
    return per_node if is_grouped else None


SHARDS = (
    r"(\d+)[- ](?:gpu|way|rank) (?:groups?|shards?|partitions?)|(\d+) shards"
    r"|(?:shard|partition|mics)(?:[ _]?(?:shard|group|size|degree))*[ =:]+(\d+)"
)
"""Ranks that state is sharded over."""

IN_GROUPS = r"hsdp|hybrid|(?<![a-z])mics(?![a-z])"
"""State sharded over groups of ranks with replicas: HSDP, and MiCS (arXiv:2205.00119), which is
ZeRO-3 inside partition groups and sums gradients over their replicas."""


def keep_gathered(execution: Execution, pp: int) -> Execution:
    """FSDP whose weights stay gathered for the step: 16-bit ones beside the sharded master copy."""
    is_pipeline = pp > 1  # whose sums over microbatches autograd and FSDP make
    state = PIPELINE_STATE if execution.element_bytes == 2 else {}
    return replace(execution, torch_pipeline=is_pipeline, fuses_gradients=not is_pipeline, **state)


def gather_ahead(execution: Execution, row: Mapping[str, str]) -> Execution:
    """ZeRO-3, which every program that has it overlaps: the next weights come while these compute.

    ZeRO++ (arXiv:2306.10209) sends weights as 8-bit integers and gradients as 4-bit ones, these
    twice: between nodes, and inside them before.
    """
    words = f"{row['id']} {row['notes']}".lower()
    if not re.search(NO_OVERLAP, words):
        execution = replace(execution, overlap_dp=True)
    if "zero++" in f"{row['zero_or_fsdp']} {row['id']} {own_words(row['notes'])}".lower():
        execution = replace(execution, gather_bytes=1, reduce_bytes=1)
    return execution
