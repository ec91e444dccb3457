"""Odd cells: a run that ran out of memory where a figure is wanted, and words that nobody knows."""

from __future__ import annotations

import re
from collections.abc import Mapping

from launcher.plan.backtest_cells import BadRow, Unsupported
from launcher.plan.backtest_programs import own_words
from launcher.plan.backtest_words import NO, YES
from launcher.plan.execution import Execution

MEASURED = ("step_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu", "mfu", "mem_gib")

FAILED = re.compile(
    r"\b(?:cuda )?(?:oom\w*|out[- ]of[- ]memory)(?: error)?|(?:did|does)(?:n't| not) fit|no fit"
)
"""Instead of a figure: the run did not fit."""


def take_out_of_memory(cells: dict[str, str]) -> bool:
    """Whether the row measured that it did not fit; cells that say so are emptied.

    By the tag `[O]`, by a cell, or by the notes of a row that measured nothing else. What memory
    such a row names is none that a step took. BadRow where a step was measured all the same.
    """
    tag = re.match(r"\[([A-Za-z]+)\]", cells["notes"])
    failed = [name for name in MEASURED if _says_failed(cells[name].lower())]
    timed = [name for name in MEASURED[:-1] if cells[name] and name not in failed]
    if failed == ["mem_gib"] and timed:
        raise BadRow(
            f"mem_gib={cells['mem_gib']}: a step was measured, {timed[0]}={cells[timed[0]]}"
        )
    if failed or (tag and "o" in tag[1].lower()):
        cells.update(dict.fromkeys([*failed, "mem_gib"], ""))
        return True
    has_figure = any(cells[name] for name in MEASURED)
    return not tag and not has_figure and FAILED.search(cells["notes"].lower()) is not None


def _says_failed(cell: str) -> bool:
    """`OOM`, `N/A (out of memory)`; not a figure with a remark."""
    return FAILED.search(cell) is not None and re.search(r"\d", cell) is None


def check_trains_all(cells: Mapping[str, str]) -> None:
    """Unsupported where most weights are frozen."""
    notes = own_words(cells["notes"])
    words = " ".join((cells["id"], cells["model"], cells["precision"], notes)).lower()
    if found := re.search(FROZEN, words):
        raise Unsupported(f"{found[0]}: only training of all parameters is predicted")


FROZEN = r"(?<![a-z])(?:q?lora|dora|peft|prefix[- ]tuning)(?![a-z])"

SHARDING = (
    rf"\d|\b(?:{'|'.join(NO + YES)})\b|ddp|dp\b|shard|replic|zero|dist|opt|fsdp|os\b|mics"
    r"|hybrid|gemini"
)
RECOMPUTE = (
    rf"\d|\b(?:{'|'.join(NO + YES)})\b|full|block|layer|all\b|every|re-?comp|checkp|\bs?ac\b|sel"
    r"|attn|attention|mlp|moe|norm|act|up_proj|softmax|uniform|core|ops?\b|operators|half|remat"
    r"|minimal|dots?\b|save_dot"
)
PRECISION = r"16|8|4|32|half|amp|mixed|single|e4m3|default"


def not_understood(cells: Mapping[str, str], execution: Execution, zero_stage: int) -> list[str]:
    """Words that are no name of anything, and what they were taken for."""
    taken = {
        "zero_or_fsdp": (SHARDING, f"ZeRO stage {zero_stage}"),
        "recompute": (RECOMPUTE, execution.recompute),
        "precision": (PRECISION, execution.matmul),
    }
    cut = re.search(EXPERTS_CUT, cells["notes"].lower())
    other = re.search(OPTIMIZERS, own_words(cells["notes"]).lower())
    return [
        f"{name}={cells[name]}: not understood, taken for {meaning}"
        for name, (known, meaning) in taken.items()
        if cells[name] and not re.search(known, cells[name].lower())
    ] + [
        *([f"experts are whole on each rank, for all that {cut[0]} says"] if cut else ()),
        *([f"optimizer: Adam in 32 bits, not {other[0]}"] if other else ()),
    ]


EXPERTS_CUT = (
    r"\b(?:etp|expert[-_ ]tensor[-_ ]parallel\w*(?:[-_ ](?:size|degree))?)[-_ =:]*"
    r"(?:[2-9]|[1-9]\d+)\b"
)
"""In notes: ranks that share each expert. Plans know none beside ep."""

OPTIMIZERS = (
    r"(?<![a-z])(?:adafactor|muon|lion|shampoo|galore|(?:8|4)[- ]?bit adamw?|adam-?mini|sgd)"
    r"(?![a-z])"
)
"""In notes: those whose state is another."""
