"""The step that a row measured, from what it publishes: its source's way to count FLOPs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from launcher.plan.backtest_cells import BadRow, read_number
from launcher.plan.backtest_programs import find_program
from launcher.plan.execution import Job
from launcher.plan.kernels import peak_flops
from launcher.plan.work import forward_flops_per_token, model_flops_per_token


def measured_step_s(cells: Mapping[str, str], job: Job) -> float | None:
    """Given, or from tokens/s, TFLOP/s or MFU by the source's convention.

    BadRow where no device could be so fast: a rate of all devices together, or another unit.
    """
    for column, step_s in (
        ("step_time_s", _given),
        ("tokens_per_s_per_gpu", _by_tokens),
        ("tflops_per_gpu", _by_flops),
        ("mfu", _by_share),
    ):
        if (value := read_number(cells, column)) is None:
            continue
        if column in RATES and re.search(OF_ALL, cells[column].lower()):
            value /= job.layout.world_size
        found = step_s(cells, job, value)
        if found < (1 - ROUNDING) * _least_s(job):
            raise BadRow(f"{column}={cells[column]}: beyond the peak of a device")
        return found
    return None


def contradictions(cells: Mapping[str, str], job: Job) -> list[str]:
    """A step time and a rate in tokens of one row that do not agree."""
    given, rate = read_number(cells, "step_time_s"), read_number(cells, "tokens_per_s_per_gpu")
    if given is None or rate is None or re.search(OF_ALL, cells["tokens_per_s_per_gpu"].lower()):
        return []
    by_rate = _by_tokens(cells, job, rate)
    if abs(math.log(given / by_rate)) < math.log(AGREE):
        return []
    return [f"step_time_s={given:g}, though its tokens per second make {by_rate:.3g} s"]


AGREE = 1.1
"""Within which two figures of one row are the same."""

RATES = ("tokens_per_s_per_gpu", "tflops_per_gpu")

OF_ALL = r"\b(?:global|total|aggregate|(?:whole )?cluster|all (?:\d+ )?(?:gpus|devices|ranks))\b"
"""Beside a rate: of all devices together."""

ROUNDING = 0.01
"""Of a published figure."""


def _least_s(job: Job) -> float:
    """Seconds of its products alone at the highest peak that the device has, causal attention at
    half, one expert per token; 0 where the lengths of both sides may be a guess.
    """
    model, gpu = job.model, job.hardware.gpu
    assert gpu is not None
    if model.encoder:
        return 0.0
    if model.experts:  # how many a token visits may be a guess
        least = {"experts_per_token": 1, "num_shared": 0}
        model = model.model_copy(update={"experts": model.experts.model_copy(update=least)})
    peak = max(gpu.peak_flops.bf16, gpu.peak_flops.fp8 or 0.0)
    return _tokens(job) * model_flops_per_token(model, job.layout.sequence_length) / peak


def _tokens(job: Job) -> float:
    """Per device and step."""
    return job.layout.global_batch_size * job.layout.sequence_length / job.layout.world_size


def _given(cells: Mapping[str, str], job: Job, seconds: float) -> float:
    return seconds


def _by_tokens(cells: Mapping[str, str], job: Job, rate: float) -> float:
    return _tokens(job) / rate


def _by_flops(cells: Mapping[str, str], job: Job, rate: float) -> float:
    return _tokens(job) * published_flops_per_token(cells, job) / (rate * 1e12)


def _by_share(cells: Mapping[str, str], job: Job, share: float) -> float:
    assert job.hardware.gpu is not None
    kind = "bf16" if find_program(dict(cells)).mfu_of_bf16 else job.execution.matmul
    peak = _stated_peak(cells) or peak_flops(job.hardware.gpu, kind)
    flops = published_flops_per_token(cells, job, is_share=True)
    return _tokens(job) * flops / (share * peak)


def _stated_peak(cells: Mapping[str, str]) -> float | None:
    """FLOP/s that a utilisation is a share of, where notes name them: `peak 312`, `989 peak`."""
    number = r"(\d{3,4}(?:\.\d+)?)"
    words = cells["notes"].lower()
    found = re.search(rf"peak (?:of )?{number}|{number} ?(?:tflop\S*)? peak", words)
    return None if found is None else float(found[1] or found[2]) * 1e12


CAUSAL = re.compile(
    r"(?<!non-)(?<!non )causal[- ](?:attention|half|flops|mask|factor)"
    r"|flops(?: are|,|:|;)? causal"
    r"|attention (?:flops )?(?:counted )?(?:at half|halved|as half|causal)"
)
"""Notes of sources whose FLOPs have half of the attention; by default they have all of it."""

NO_ATTENTION = re.compile(
    r"(?:without|no|excluding|excl\.|ignor\w+) attention(?= flop| term| part|\s*[;,.)]|\s*$)"
    r"|attention (?:flops )?(?:is |are )?(?:not counted|ignored|excluded)"
    r"|\b[68] ?[*x\u00b7]? ?[np] ?[*x\u00b7]? ?d\b"
)
"""Notes of sources that count parameters alone."""

RECOMPUTE_COUNTED = (
    r"narayanan|2104\.04473|bloom|bigscience|2211\.05100|mt-nlg|turing[- ]nlg|2201\.11990"
    r"|neox|2304\.11277|megatron[- ]?deepspeed"
)
"""Sources whose TFLOP/s count the recomputed forward of the blocks (SC21, equation 3); what
Megatron-DeepSpeed prints does (four passes instead of three in its `throughput_calculator`)."""


def published_flops_per_token(cells: Mapping[str, str], job: Job, is_share: bool = False) -> float:
    """As the source counts them: attention whole, and recomputation where it says so; a share of
    the peak is of model FLOPs whatever its source's TFLOP/s are, unless the row says otherwise.
    """
    words = f"{cells['source']} {cells['source_url_or_repo_path']} {cells['notes']}".lower()
    model, length = job.model, job.layout.sequence_length
    is_causal = CAUSAL.search(words) is not None
    if NO_ATTENTION.search(words):
        is_causal, length = False, 1
    total = model_flops_per_token(model, length, causal=is_causal)
    execution = job.execution
    source = "" if is_share else f"{cells['source']} {cells['source_url_or_repo_path']}".lower()
    if execution.recompute in ("full", "selective") and _counts_recompute(source, words):
        again = forward_flops_per_token(model, length, causal=is_causal, with_head=False)
        if execution.recompute == "selective":  # attention's core alone
            again -= forward_flops_per_token(model, 0, causal=False, with_head=False)
        total += execution.recompute_share * again
    return total


def _counts_recompute(source: str, words: str) -> bool:
    """Where its words say so, or the source does and they do not say that it does not."""
    again = r"(?:(?:the|all|full|activation|recomputed|forward)[- ])*(?:re-?comput|checkpointing)"
    counted = rf"(?:incl(?:\.|ud(?:e|es|ed|ing))|count(?:s|ed|ing)?) {again}"
    passive = r"re-?comput\w* (?:flops |forward |passes )*(?:is |are )?(?:included|counted)"
    denied = rf"(?:not|n't|without|nor|never) {counted}|no re-?comput|exclud\w* {again}"
    if re.search(denied, words):
        return False
    if re.search(rf"{counted}|{passive}|{HARDWARE}|{IS_HFU}", words):
        return True
    if re.search(r"model[- ](?:t?flop|compute)", words):
        return False
    return re.search(RECOMPUTE_COUNTED, source) is not None


HARDWARE = (
    r"(?:hardware|\bhw)[- ]t?flop|flop\S*,? (?:are |is |= ?)?(?:of )?(?:the )?(?:hardware|hw)\b"
    r"|\b8 ?[*x\u00b7]? ?[np] ?[*x\u00b7]? ?d\b|\b96 ?b ?s ?l ?h"
)
"""Words for FLOPs that a device does, the recomputed forward among them; 96 B s l h^2 is SC21's
third equation, 8 N D the same without attention."""

IS_HFU = r"(?<!not )\bhfu\b(?!,? (?:is )?(?:not (?!mfu)|un)|\W*(?:of |was |is |=|:)*\s*\d|/mfu)"
"""A utilisation that is said to be of hardware FLOPs; not one that is stated beside another."""
