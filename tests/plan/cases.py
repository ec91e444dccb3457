"""Runs with open layouts, shared by the tests of filling, planning and reporting."""

from __future__ import annotations

from typing import Any

from launcher.config.schema import Run
from tests.factory import GPT2_124M, LLAMA3_70B, h100, make_run

LLAMA3_8B = LLAMA3_70B | {
    "name": "llama3_8b", "num_layers": 32, "hidden_size": 4096, "num_heads": 32,
    "ffn_hidden_size": 14336,
}  # fmt: skip
LLAMA3_405B = LLAMA3_70B | {
    "name": "llama3_405b", "num_layers": 126, "hidden_size": 16384, "num_heads": 128,
    "ffn_hidden_size": 53248,
}  # fmt: skip
GPT3_175B = GPT2_124M | {
    "name": "gpt3_175b", "num_layers": 96, "hidden_size": 12288, "num_heads": 96,
    "ffn_hidden_size": 49152, "max_sequence_length": 2048,
}  # fmt: skip
OPEN: dict[str, Any] = {"tp": None, "pp": None, "dp": None, "recompute": None}


def open_run(model: dict[str, Any], num_nodes: int = 8, **overrides: Any) -> Run:
    """A bf16 run on H100 nodes with everything open that may be."""
    pinned = {key: value for key, value in overrides.items() if "." in key}
    return make_run(
        model=model,
        hardware=h100(num_nodes),
        parallelism=OPEN,
        train={"micro_batch_size": None, "num_microbatches": None},
        precision={"name": "bf16", "compute": "bf16"},
        **pinned,
    )
