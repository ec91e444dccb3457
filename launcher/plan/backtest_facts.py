"""What a row of a table says in words: kernels, formats, sharding, recomputation, schedule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.config.schema import Gpu, Hardware
from launcher.plan.backtest_cells import Unsupported, read_number
from launcher.plan.backtest_programs import PIPELINE_STATE, find_program
from launcher.plan.execution import Execution, Recompute


def find_execution(
    row: dict[str, str], tp: int, vpp: int, num_layers: int, hardware: Hardware
) -> Execution:
    """The program's execution with what this row says of it."""
    program = find_program(row)
    execution, words = program.execution, f"{row['id']} {row['notes']}".lower()
    changes: dict[str, Any] = {}
    is_long = (read_number(row, "cp") or 1) > 1 or (read_number(row, "seq") or 1) > LONGEST_SCORES
    if program.is_modern and vpp > 1:  # Megatron-Core overlaps exchanges of interleaved stages
        changes["overlap_p2p"] = True
    if re.search(r"(no|without) flash|torch attention|unfused attention", words):
        changes["attention"] = "matrix"
    elif re.search(r"flash[- ]?attention[- ]?3|fa3|cudnn", words):
        changes["attention"] = "cudnn"
    elif (re.search(r"flash", words) or is_long) and execution.attention == "matrix":
        changes["attention"] = "flash"
    if re.search(r"(?<![a-z])eager", words):
        changes["fusion"] = "eager"
    elif re.search(r"torch\.compile|(?<![a-z])compile", words):
        changes["fusion"] = "compiled"
    if re.search(r"async[-_ ]?tp|tp[-_ ]comm[-_ ]overlap", words):
        changes["overlap_tp"] = True
    if re.search(NO_OVERLAP, words):
        changes |= {"overlap_tp": False, "overlap_dp": False, "overlap_p2p": False}
    if "fused ce" in words or "fused cross" in words:
        changes["fused_loss"] = True
    if re.search(r"cp a2a|ulysses", words):
        changes["cp_mode"] = "ulysses"
    assert hardware.gpu is not None
    changes |= _number_formats(row, hardware.gpu)
    if "parallel attn" in words:
        changes["parallel_block"] = True
    given = row["sp"].lower()
    is_split = given not in NO if given else program.is_modern
    changes["sequence_parallel"] = tp > 1 and is_split
    if offload := _offload(words + " " + row["zero_or_fsdp"].lower()):
        changes["offload"] = offload
    if "allocated" in words:
        changes |= {"reserved": False, "process": False}
    elif "nvidia-smi" not in words:
        changes["process"] = False
    recompute, share = read_recompute(row["recompute"], num_layers)
    changes |= {"recompute": recompute, "recompute_share": share}
    changes["shard_size"] = _shard_size(row, hardware.gpus_per_node or 1)
    return replace(execution, **changes)


NO_OVERLAP = r"no (comm|communication) overlap"
"""In notes: collectives wait for the computing."""

LONGEST_SCORES = 8192
"""Tokens of a sequence beyond which, as where it is cut over cp, nobody writes all scores out."""

NO = ("no", "none", "off", "false", "0", "n", "disabled", "without")
"""Ways to write that something is not used."""


def _number_formats(row: Mapping[str, str], gpu: Gpu) -> dict[str, Any]:
    """What `fp8(delayed)`, `fp16`, `bf16-mixed`, `amp` and `fp32` say of kernels and state."""
    words = row["precision"].lower().replace("-", "").replace("_", "")
    known = "fp4|int8|int4|tf32|fp8|float8|bf16|bfloat16|fp16|float16|half|amp|mixed|fp32|float32"
    first = re.search(f"{known}|single", words)
    kind = first[0] if first else ""
    if kind in ("fp4", "int8", "int4", "tf32"):
        raise Unsupported(f"precision={row['precision']}: no facts of its rates")
    if kind in ("fp8", "float8"):
        if gpu.peak_flops.fp8 is None:
            raise Unsupported(f"precision={row['precision']}: {gpu.name} has no 8-bit floats")
        return {"matmul": "fp8"}
    if kind in ("fp32", "float32", "single"):
        sizes = {"weight_bytes": 4, "gradient_bytes": 4, "state_bytes": 8}
        return {"matmul": "fp32", "element_bytes": 4, "reduce_bytes": 4, "gather_bytes": 4} | sizes
    return {}


def _offload(words: str) -> str | None:
    """What waits in the node's RAM."""
    if not re.search(r"off-?load", words) or re.search(r"(no|without)( cpu)? off-?load", words):
        return None
    whole = r"param\w*[- ]off-?load|off-?load\w* (of )?(param|weight)|zero-infinity|cpu_offload"
    return "parameters" if re.search(whole, words) else "optimizer"


def zero_stage(text: str, pp: int) -> int:
    """Of `zero1(dist-opt)`, `ZeRO stage 2`, `fsdp2(zero3)`, `fsdp`, `SHARD_GRAD_OP`, `ddp`, `0`."""
    if re.search(r"(?<![a-z])mics(?![a-z])|zero\+\+", text):
        return 3
    if found := re.search(r"(?:zero|stage|^z|^)[-_ ]*(?:stage)?[-_ =:]*([0-3])(?!\d)", text):
        return int(found[1])
    if re.search(r"shard_grad_op|grad_op|\bos\+g\b", text):
        return 2
    if re.search(r"no_shard|\bddp\b", text):
        return 0
    if "fsdp" in text or "hsdp" in text or "full_shard" in text or "hybrid_shard" in text:
        return 3 if pp == 1 else 2  # inside a pipeline weights stay gathered for the step
    return 1 if re.search(r"dist|\bp?os\b|optimizer", text) else 0


def _shard_size(row: Mapping[str, str], per_node: int) -> int | None:
    """`hsdp(16-GPU groups)`, `MiCS` with `partition size 16` in notes; inside a node by default."""
    text = row["zero_or_fsdp"].lower()
    if re.search(IN_GROUPS, text):
        text += " " + row["notes"].lower()
    size = r"(?:shard|partition|mics)(?:[ _]?(?:shard|group|size))*[ =:]+(\d+)"
    if groups := re.search(rf"(\d+)[- ](?:gpu|way) (?:groups?|shards?|partitions?)|{size}", text):
        return int(groups[1] or groups[2])
    return per_node if re.search(IN_GROUPS, text) else None


IN_GROUPS = r"hsdp|hybrid|(?<![a-z])mics(?![a-z])"
"""State sharded over groups of ranks with replicas: HSDP, and MiCS (arXiv:2205.00119), which is
ZeRO-3 inside partition groups and sums gradients over their replicas."""


def keep_gathered(execution: Execution, pp: int) -> Execution:
    """FSDP whose weights stay gathered for the step: 16-bit ones beside the sharded master copy."""
    is_pipeline = pp > 1  # whose sums over microbatches autograd and FSDP make
    return replace(
        execution, torch_pipeline=is_pipeline, fuses_gradients=not is_pipeline, **PIPELINE_STATE
    )


def gather_ahead(execution: Execution, row: Mapping[str, str]) -> Execution:
    """ZeRO-3, which every program that has it overlaps: the next weights come while these compute.

    ZeRO++ (arXiv:2306.10209) sends weights as 8-bit integers and gradients as 4-bit ones, these
    twice: between nodes, and inside them before.
    """
    words = f"{row['id']} {row['notes']}".lower()
    if not re.search(NO_OVERLAP, words):
        execution = replace(execution, overlap_dp=True)
    if "zero++" in row["zero_or_fsdp"].lower():
        execution = replace(execution, gather_bytes=1, reduce_bytes=1)
    return execution


def read_recompute(text: str, num_layers: int) -> tuple[Recompute, float]:
    """`full`, `selective(op SAC)`, `full on 5 layers`, `selective(every 2nd layer)`, `none`."""
    text = text.lower().strip()
    words = re.findall(r"[a-z]+", text)
    if not text or words[:1] in ([word] for word in NO) or text in NO:
        return "none", 1.0
    if found := re.search(r"(?:on|of|for|first)? ?(\d+) (?:of \d+ )?(?:layers|blocks)", text):
        return "full", min(1.0, int(found[1]) / num_layers)
    if found := re.search(r"(\d+(?:\.\d+)?) ?%", text):
        return "full", min(1.0, float(found[1]) / 100)
    if re.search(r"every (other|second)", text):
        return "full", 0.5
    if found := re.search(r"every (\d+)", text):
        return "full", 1 / max(1, int(found[1]))
    if {"op", "sac", "ops", "operators"} & set(words):
        return "operators", 1.0
    if re.match(r"sel|attn|attention|core", text) or "selective" in words:
        return "selective", 1.0
    return "full", 1.0


SCHEDULE_WORDS = (
    (r"zb-?v|zbv", "zb_v"),
    (r"zb-?h1", "zb_h1"),
    (r"zb-?h2", "zb_h2"),
    (r"zb-?1p", "zb_1p"),
    (r"zb-?2p", "zb_2p"),
    (r"dualpipe", "dualpipev"),
    (r"gpipe", "gpipe"),
)
"""Names of schedules in the id or the notes of a row; else 1F1B, interleaved where vpp > 1."""


def find_schedule(row: dict[str, str], vpp: int) -> str:
    """A name of `SCHEDULES`."""
    words = f"{row['id']} {row['notes']}".lower().replace("_", "-")
    for pattern, name in SCHEDULE_WORDS:
        if re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", words):
            return name
    return "interleaved_1f1b" if vpp > 1 else "1f1b"
