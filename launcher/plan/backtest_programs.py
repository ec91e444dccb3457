"""Which program trained a row, and how it executes: recognised by the row's source and notes.

What a row does not say is taken at the defaults stated here; none of them is a constant fitted to
one source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from launcher.plan.backtest_words import says_fsdp
from launcher.plan.execution import Execution


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program: what it is recognised by, and how it executes."""

    pattern: str
    """Searched in source and notes, without regard to case."""
    execution: Execution
    is_modern: bool = True
    """Sequence parallelism with tp is the default."""
    default_stage: int = 0
    """ZeRO stage where a row has no word on sharding."""
    microbatch_per_stage: bool = False
    """Where a row has no micro-batch: as many microbatches as pp; else samples."""
    has_own_fsdp: bool = False
    """Shards weights around its own kernels (Megatron-FSDP); others do around torch's."""
    mfu_of_bf16: bool = False
    """Its utilisation is of the 16-bit peak, whatever products multiply in."""
    selects_operators: bool = False
    """Its selective recomputation is of operators where a row does not say of what."""
    layers_per_chunk: int | None = None
    """Of interleaved stages; None: each stage is cut in two where a row says no number."""


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
    fuses_gradients=False,
    **PIPELINE_STATE,
)
"""Megatron-LM before FlashAttention: fused softmax, bias and dropout kernels, half-precision
reduction behind the last backward, blocking exchanges between stages. Weight gradients are added to
float32 sums by hooks of their own (`main_grad.add_` in its DDP)."""

MEGATRON_2022 = replace(MEGATRON_2021, fuses_gradients=True)
"""The same since `--gradient-accumulation-fusion` of early 2022."""

MEGATRON_DEEPSPEED = replace(MEGATRON_2021, p2p_paired=False, p2p_whole_gradients=True)
"""The same kernels in DeepSpeed's pipeline, whose engine sends and receives one after the other,
and shares out activations over tp ranks (is_pipe_partitioned) but not gradients."""

MEGATRON = Execution(
    attention="cudnn", fusion="fused", overlap_dp=True, final_all_reduce_again=True,
    overlap_p2p=False, unused_gradients=True, saves_quantised=True, **PIPELINE_STATE,
)  # fmt: skip
"""Megatron-Core with Transformer Engine."""

MEGATRON_2023 = replace(
    MEGATRON_2022, p2p_split=False, final_all_reduce_again=False, reduce_bytes=4
)
"""Megatron-LM with its fused softmax and dropout: `--use-flash-attn` was off unless asked for. The
zero-bubble paper's profiled passes (2401.10241, tables 5 and 9) have a forward of twice its weight
gradients, as scores that are written out give; FlashAttention would be a fifth shorter."""

DEEPSPEED = replace(
    MEGATRON, attention="flash", unused_gradients=False, gradient_bytes=2, reduce_bytes=2,
    fuses_gradients=False,
)  # fmt: skip
"""DeepSpeed's engines. They sum gradients themselves (Megatron's fused sums need its `main_grad`),
under ZeRO in the model's type (`grad_accum_dtype` in deepspeed/runtime/engine.py)."""

UNKNOWN = replace(
    MEGATRON, attention="flash", unused_gradients=False, saves_quantised=False, gradient_bytes=2,
    reduce_bytes=2,
)  # fmt: skip
"""Megatron's way of doing things with FlashAttention 2 and 16-bit gradients, as in ZeRO's
convention of 2 + 2 + 12 bytes."""

FSDP = Execution(attention="flash", fusion="eager", overlap_dp=True, **SHARDED_STATE)
"""PyTorch's FSDP around torch's own kernels."""

NO_ZERO = "(?:bubble|shot|warm|init|dropout|weight|padding|grad)"
"""Behind the word where it is a number."""

PROGRAMS = (
    Program(
        # grad_sync_dtype=bf16: NVIDIA/NeMo-Framework-Launcher, examples/training/*/h100/*.sh;
        # beside bf16 weights NeMo keeps the other 16 bits of the float32 master
        # (store_param_remainders in megatron_base_model.py of NVIDIA/NeMo).
        pattern=r"nemo(?!tron)|dgxc|dgx cloud|performance (?:recipes|summary)|megatron[- ]bridge"
        r"|mlperf",
        execution=replace(
            MEGATRON,
            overlap_tp=True,
            fused_loss=True,
            gradient_bytes=2,
            reduce_bytes=2,
            state_bytes=10,
        ),
        default_stage=1,
        has_own_fsdp=True,
    ),
    Program(
        pattern=r"(?<![a-z])(?:torch)?titan(?! rtx| x\b|[a-z ]*super)",
        execution=replace(
            FSDP,
            cuts_loss_by_dtensor=True,
            keeps_gathered_inputs=True,
            repeats_keys=True,
            expandable_segments=True,
            cp_mode="all_gather",
        ),
        default_stage=3,
        microbatch_per_stage=True,
        selects_operators=True,  # selective_ac_option = "op" in the files of its own models
        mfu_of_bf16=True,  # `get_peak_flops` in torchtitan/tools/utils.py knows no other
    ),
    Program(
        # attn_impl=triton: scripts/train/benchmarking/submit_benchmarks.py of mosaicml/llm-foundry.
        pattern=r"llm[- _]?foundry|mosaic|composer",
        execution=replace(FSDP, attention="triton", fused_loss=True, fused_optimizer=False),
        default_stage=3,
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
            fuses_gradients=False,
            whole_tensors=True,
        ),
        default_stage=1,
    ),
    Program(
        pattern=r"gpt-neox|gptneox|2204\.06745",
        # configs/20B.yml has no dropout; its rotations are torch's own kernels; under ZeRO-1 and
        # float16 DeepSpeed sums gradients in float16
        execution=replace(
            MEGATRON_DEEPSPEED, fusion="eager", dropout_masks=False, gradient_bytes=2
        ),
        is_modern=False,
    ),
    Program(
        pattern=r"bigscience|bloom|2211\.05100|mt-nlg|turing[- ]nlg|2201\.11990"
        r"|megatron[- ]?deepspeed",
        execution=MEGATRON_DEEPSPEED,
        is_modern=False,
    ),
    Program(pattern=r"korthikanti|2205\.05198", execution=MEGATRON_2022, is_modern=False),
    Program(pattern=r"narayanan|2104\.04473", execution=MEGATRON_2021, is_modern=False),
    Program(
        # bubble rates of its interleaved 1F1B (table 5) are those of chunks of one layer
        pattern=r"zero[- ]bubble|2401\.10241",
        execution=MEGATRON_2023,
        layers_per_chunk=1,
    ),
    Program(pattern=r"fsdp", execution=FSDP, default_stage=3),
    Program(
        # XLA fuses elementwise operators; its attention on NVIDIA's GPUs is cuDNN's.
        pattern=r"maxtext|(?<![a-z])(?:jax|xla|pax|paxml|t5x|levanter)(?![a-z])",
        execution=replace(FSDP, attention="cudnn", fusion="compiled"),
        default_stage=3,
        has_own_fsdp=True,
    ),
    Program(
        pattern=rf"deepspeed|\bzero\b(?![- ]?{NO_ZERO})|zero[- ]?(3|infinity|offload)",
        execution=DEEPSPEED,
    ),
    Program(
        # "fine-grained overlapping": its README runs with --tp-comm-overlap, which is else off
        pattern=r"megatron[- ]?(?:lm|core)\b.*\b(?:readme|scaling)",
        execution=replace(MEGATRON, overlap_tp=True),
        default_stage=1,
        has_own_fsdp=True,
    ),
    Program(
        pattern=r"megatron|mcore|simumax|transformer[- ]engine|megascale",
        execution=MEGATRON,
        default_stage=1,  # the distributed optimizer, as its own examples have it
        has_own_fsdp=True,
    ),
    Program(
        # huggingface/nanotron: TritonRMSNorm and torch's operators around FlashAttention 2
        # (models/llama.py); gradients are added to float32 sums, and those reduced, by hooks of
        # the backward pass (gradient_accumulator.py).
        pattern=r"nanotron|ultra-?scale[- ]playbook",
        execution=replace(
            UNKNOWN,
            fusion="eager",
            fused_norm=True,
            fuses_gradients=False,
            gradient_bytes=4,
            reduce_bytes=4,
        ),
    ),
    Program(
        # Loops around models of torch's own operators.
        pattern=r"hugging ?face|(?<![a-z])hf(?![a-z])|transformers|\baccelerate\b|axolotl"
        r"|llama[- ]?factory|torchtune|lit-?gpt|lightning",
        execution=replace(UNKNOWN, fusion="eager"),
    ),
    Program(pattern=r"", execution=UNKNOWN),
)
"""The first whose pattern is found. The last one is the default."""

FIRST_FLASH = 2301
"""Papers on arXiv before this month are taken to write attention scores out: FlashAttention
(May 2022) came into Megatron-LM and DeepSpeed in 2023."""

OLD_RUNS = r"bigscience|bloom|mt-nlg|turing[- ]nlg|narayanan|korthikanti"
"""Runs of before, whichever later paper a row has them from."""


def find_program(row: dict[str, str]) -> Program:
    """What trained this row."""
    notes = own_words(row["notes"])
    source = " ".join((row["source"], row["source_url_or_repo_path"], notes)).lower()
    title = row["source"].lower()
    for program in PROGRAMS:
        if re.search(program.pattern, title) and program.pattern:
            notes = ""  # what it names besides is beside
            break
    else:
        program = next(entry for entry in PROGRAMS if re.search(entry.pattern, source))
    is_fsdp = says_fsdp(row["zero_or_fsdp"])
    is_own = program.has_own_fsdp or re.search("megatron|mcore", row["zero_or_fsdp"].lower())
    is_torch = program.execution.weight_bytes == SHARDED_STATE["weight_bytes"]
    if is_fsdp and not is_torch and not is_own:
        program = Program(pattern="fsdp", execution=FSDP)
    written = _written(row["source"], row["source_url_or_repo_path"], notes)
    is_old = bool(written) and min(written) < FIRST_FLASH and "flash" not in source
    if is_old and is_fsdp:
        old = replace(program.execution, attention="matrix", dropout_masks=True)
        return replace(program, execution=old, is_modern=False)
    if is_old and program.is_modern:
        program = Program(pattern="", execution=MEGATRON_2021, is_modern=False)
    is_new = bool(written) and min(written) >= FIRST_FLASH and not re.search(OLD_RUNS, title)
    if is_new and not program.is_modern:
        return replace(program, execution=replace(program.execution, attention="flash"))
    return program


def unknown_program(row: dict[str, str]) -> str | None:
    """What a row is taken for whose source and notes name no program that is known."""
    program = find_program(row)
    if program.pattern:
        return None
    is_old = program.execution.dropout_masks
    kind = "Megatron-LM's of 2021" if is_old else "Megatron-Core's, with FlashAttention 2"
    return f"no program that is known: kernels and overlap as {kind}"


def own_words(notes: str) -> str:
    """Notes without what is denied or compared with, and without the papers whose way to count
    FLOPs they name: `MFU as in 2204.02311`.
    """
    notes = re.sub(DENIED, "", notes)
    counts = r"(?i)flop|mfu|hfu|\beq(?:uation)?\b|formula|convention"
    cited = rf"{PAPER}|(?i:narayanan|korthikanti)"
    return ";".join(
        re.sub(cited, "", clause) if re.search(counts, clause) else clause
        for clause in notes.split(";")
    )


DENIED = (
    r"(?i)\b(?:no|not|without|unlike|versus|vs\.?|than|against|compared (?:with|to)|instead of)"
    r" (?:an? |the |with )?[\w-]+"
)

PAPER = r"\b([12]\d{3})\.\d{4,5}\b"
"""Its month on arXiv, and its number."""


def _written(*texts: str) -> list[int]:
    """Months of the papers that the row is from, by the first text that names some."""
    found = next(filter(None, (re.findall(PAPER, text) for text in texts)), [])
    return [int(number) for number in found]
