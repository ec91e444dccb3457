"""Which software and hardware a row of a table means, where its cells say so only in words.

What a row does not say is taken at the defaults stated here; none of them is a constant fitted to
one source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from launcher.plan.execution import Execution, Recompute


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program: what it is recognised by, and how it executes."""

    pattern: str
    """Searched in source and notes, without regard to case."""
    execution: Execution
    is_modern: bool = True
    """Sequence parallelism with tp is the default."""
    microbatch_per_stage: bool = False
    """Where a row has no micro-batch: as many microbatches as pp; else samples."""


PIPELINE_STATE: dict[str, Any] = {"weight_bytes": 2, "gradient_bytes": 4, "state_bytes": 12}
"""Megatron-LM and DeepSpeed: 16-bit weights, float32 gradients, float32 master and moments."""

SHARDED_STATE: dict[str, Any] = {"weight_bytes": 4, "gradient_bytes": 4, "state_bytes": 8}
"""FSDP: float32 weights are the master copy; each use gathers them in 16 bits."""

MEGATRON_2021 = Execution(
    attention="matrix",
    fusion="fused",
    dropout_masks=True,
    overlap_p2p=False,
    p2p_split=True,
    final_all_reduce_again=True,
    reduce_bytes=2,
    **PIPELINE_STATE,
)
"""Megatron-LM before FlashAttention: fused softmax, bias and dropout kernels, half-precision
reduction behind the last backward, blocking exchanges between stages."""

MEGATRON = Execution(
    attention="cudnn", fusion="fused", overlap_dp=True, final_all_reduce_again=True,
    overlap_p2p=False, unused_gradients=True, **PIPELINE_STATE,
)  # fmt: skip
"""Megatron-Core with Transformer Engine."""

FSDP = Execution(attention="flash", fusion="eager", overlap_dp=True, **SHARDED_STATE)
"""PyTorch's FSDP around torch's own kernels."""

PROGRAMS = (
    Program(
        pattern=r"nemo|dgxc|dgx cloud|performance recipes",
        execution=replace(
            MEGATRON, overlap_tp=True, fused_loss=True, gradient_bytes=2, reduce_bytes=2
        ),
    ),
    Program(
        pattern=r"torchtitan|titan",
        execution=replace(
            FSDP,
            cuts_loss_by_dtensor=True,
            keeps_gathered_inputs=True,
            repeats_keys=True,
            expandable_segments=True,
            cp_mode="all_gather",
        ),
        microbatch_per_stage=True,
    ),
    Program(
        pattern=r"llm-foundry|mosaic|composer",
        execution=replace(FSDP, fused_loss=True, fused_optimizer=False),
    ),
    Program(
        pattern=r"internevo|internlm",
        execution=replace(
            MEGATRON,
            attention="flash",
            fusion="eager",
            unused_gradients=False,
            reduce_bytes=2,
            gradient_bytes=2,
        ),
    ),
    Program(
        pattern=r"gpt-neox|gptneox|2204\.06745",
        execution=replace(
            MEGATRON_2021, fusion="eager", dropout_masks=False, p2p_split=False, p2p_paired=False
        ),
        is_modern=False,
    ),
    Program(
        pattern=r"narayanan|2104\.04473|korthikanti|2205\.05198|bigscience|bloom|mt-nlg|2201\.11990",
        execution=MEGATRON_2021,
        is_modern=False,
    ),
    Program(pattern=r"fsdp", execution=FSDP),
    Program(
        pattern=r"deepspeed|zero",
        execution=replace(MEGATRON, attention="flash", unused_gradients=False, reduce_bytes=2),
    ),
    Program(pattern=r"", execution=MEGATRON),
)
"""The first whose pattern is found; the last one is the default."""

FIRST_FLASH = 2301
"""Papers on arXiv before this month are taken to write attention scores out: FlashAttention
(May 2022) came into Megatron-LM and DeepSpeed in 2023."""


def find_program(row: dict[str, str]) -> Program:
    """What trained this row."""
    source = " ".join((row["source"], row["source_url_or_repo_path"], row["notes"])).lower()
    title = row["source"].lower()
    for program in PROGRAMS:
        if re.search(program.pattern, title) and program.pattern:
            break
    else:
        program = next(entry for entry in PROGRAMS if re.search(entry.pattern, source))
    if program.pattern in ("", "deepspeed|zero") and row["zero_or_fsdp"].startswith("fsdp"):
        program = Program(pattern="fsdp", execution=FSDP)
    written = [int(number) for number in re.findall(r"\b(2\d{3})\.\d{5}\b", source)]
    is_old = bool(written) and min(written) < FIRST_FLASH and "flash" not in source
    if is_old and program.is_modern and not row["zero_or_fsdp"].startswith("fsdp"):
        program = Program(pattern="", execution=MEGATRON_2021, is_modern=False)
    return program


def find_execution(row: dict[str, str], tp: int, vpp: int, num_layers: int) -> Execution:
    """The program's execution with what this row says of it."""
    program = find_program(row)
    execution, words = program.execution, f"{row['id']} {row['notes']}".lower()
    changes: dict[str, Any] = {}
    if program.is_modern and vpp > 1:  # Megatron-Core overlaps exchanges of interleaved stages
        changes["overlap_p2p"] = True
    if re.search(r"(no|without) flash|torch attention|unfused attention", words):
        changes["attention"] = "matrix"
    elif re.search(r"flash[- ]?attention[- ]?3|fa3|cudnn", words):
        changes["attention"] = "cudnn"
    elif re.search(r"flash", words) and execution.attention == "matrix":
        changes["attention"] = "flash"
    if re.search(r"(?<![a-z])eager", words):
        changes["fusion"] = "eager"
    elif re.search(r"torch\.compile|(?<![a-z])compile", words):
        changes["fusion"] = "compiled"
    if re.search(r"async[-_ ]?tp|tp[-_ ]comm[-_ ]overlap", words):
        changes["overlap_tp"] = True
    if re.search(r"no (comm|communication) overlap", words):
        changes |= {"overlap_tp": False, "overlap_dp": False, "overlap_p2p": False}
    if "fused ce" in words or "fused cross" in words:
        changes["fused_loss"] = True
    if re.search(r"cp a2a|ulysses", words):
        changes["cp_mode"] = "ulysses"
    if "fp8" in row["precision"] or "float8" in row["precision"]:
        changes["matmul"] = "fp8"
    if "parallel attn" in words:
        changes["parallel_block"] = True
    given = row["sp"].lower()
    changes["sequence_parallel"] = tp > 1 and (given == "yes" or (not given and program.is_modern))
    if "allocated" in words:
        changes |= {"reserved": False, "process": False}
    elif "nvidia-smi" not in words:
        changes["process"] = False
    recompute, share = read_recompute(row["recompute"], num_layers)
    changes |= {"recompute": recompute, "recompute_share": share}
    if groups := re.search(r"\((\d+)-gpu groups\)", row["zero_or_fsdp"].lower()):
        changes["shard_size"] = int(groups[1])
    if "internevo" in row["source"].lower() and "all dp" in row["zero_or_fsdp"].lower():
        changes["broadcasts_shards"] = True
    return replace(execution, **changes)


def keep_gathered(execution: Execution, pp: int) -> Execution:
    """FSDP whose weights stay gathered for the step: 16-bit ones beside the sharded master copy."""
    return replace(execution, torch_pipeline=pp > 1, **PIPELINE_STATE)


def read_recompute(text: str, num_layers: int) -> tuple[Recompute, float]:
    """`full`, `selective(op SAC)`, `full on 5 layers`, `selective(every 2nd layer)`, `none`."""
    text = text.lower().strip()
    if found := re.search(r"on (\d+) layers", text):
        return "full", min(1.0, int(found[1]) / num_layers)
    if found := re.search(r"every (\d+)", text):
        return "full", 1 / int(found[1])
    if text.startswith("full") or text in ("yes", "true", "1", "block"):
        return "full", 1.0
    if "op" in re.findall(r"[a-z]+", text):
        return "operators", 1.0
    if text.startswith("selective"):
        return "selective", 1.0
    return "none", 1.0


DEVICES = (
    (r"a100.*40", "a100_40gb", "hgx_a100", "ib_hdr200"),
    (r"a100|a800", "a100_80gb", "hgx_a100", "ib_hdr200"),
    (r"v100", "v100_sxm2_32gb", "dgx1_v100", "ib_edr100_half"),
    (r"mi250", "mi250x_gcd", "mi250x", "slingshot_200"),
    (r"mi300", "mi300x", "mi300x", "ib_ndr400"),
    (r"h100.*hbm2e", "h100_96gb_hbm2e", "hgx_h100", "ib_ndr400"),
    (r"h800", "h800_sxm", "hgx_h800", "ib_ndr400"),
    (r"h100", "h100_sxm", "hgx_h100", "ib_ndr400"),
    (r"h200", "h200_sxm", "hgx_h100", "ib_ndr400"),
    (r"gb200", "gb200", "hgx_b200", "ib_ndr400"),
    (r"b200", "b200_sxm", "hgx_b200", "ib_ndr400"),
)
"""Pattern of the gpu cell; facts of the device, of its node and of the fabric it usually has."""


def find_devices(row: dict[str, str]) -> tuple[str, str, str] | None:
    """Names under conf/hardware: gpu, node, network."""
    for pattern, gpu, node, network in DEVICES:
        if re.search(pattern, row["gpu"].lower()):
            unknown = "interconnect not stated" in row["notes"].lower()
            return gpu, node, "roce_100" if unknown else network
    return None


FABRIC = re.compile(
    r"\d+\s*x\s*\d+\s*Gb[^;.,]*|\d+\s*Gb(?:/s|ps)?/GPU[^;.,]*"
    r"|[\d.]+\s*[GT]b(?:/s|ps)[^.;]*(?:per|/) ?(?:host|node|server)"
)
"""How notes state a network: `8x200Gb HDR IB`, `400Gb/s/GPU RoCE`, `2 Tb/s RoCE per host`."""


def share_fabrics(rows: Iterable[Mapping[str, str | None]]) -> list[dict[str, str | None]]:
    """Rows that state no network get the one that all other rows of their source and GPU state."""
    copies = [dict(row) for row in rows]
    stated: dict[tuple[str | None, str | None], set[str]] = {}
    for row in copies:
        if found := FABRIC.search(row.get("notes") or ""):
            stated.setdefault((row.get("source"), row.get("gpu")), set()).add(found[0].strip())
    for row in copies:
        fabrics = stated.get((row.get("source"), row.get("gpu")), set())
        if len(fabrics) == 1 and not FABRIC.search(row.get("notes") or ""):
            row["notes"] = f"{row.get('notes') or ''}; {next(iter(fabrics))}"
    return copies


def stated_bandwidth(row: dict[str, str], gpus_per_node: int) -> float | None:
    """Bytes per second and GPU where the notes say so.

    `8x200Gb`, `400Gb/s/GPU`, `2 Tb/s RoCE per host`, `400 Gbps EFA per node`.
    """
    notes = row["notes"]
    if found := re.search(r"(\d+)\s*x\s*(\d+)\s*Gb", notes):
        return int(found[1]) * int(found[2]) * 1e9 / 8 / gpus_per_node
    if found := re.search(r"(\d+)\s*Gb(?:/s|ps)?/GPU", notes):
        return int(found[1]) * 1e9 / 8
    each = r"([\d.]+)\s*([GT])b(?:/s|ps)[^.;]*(?:per|/) ?(?:host|node|server)"
    if found := re.search(each, notes):
        scale = 1e12 if found[2] == "T" else 1e9
        return float(found[1]) * scale / 8 / gpus_per_node
    return None


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
