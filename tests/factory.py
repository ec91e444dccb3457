"""Runs made by hand, for tests that need a whole configuration without Hydra.

make_run()                                    a tiny decoder, untied, on one CPU process
make_run(**{"parallelism.tp": 2, "train.steps": 3})
make_run(hardware=h100(num_nodes=8), model=LLAMA3_70B, parallelism={"tp": None, "pp": None})
"""

from __future__ import annotations

from typing import Any

from launcher.config.schema import Run

TINY: dict[str, Any] = {
    "name": "tiny", "num_layers": 4, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2,
    "ffn_hidden_size": 64, "vocab_size": 256, "max_sequence_length": 64,
}  # fmt: skip
"""Llama-like (rope, rmsnorm, swiglu, no bias, untied)."""

TINY_GPT: dict[str, Any] = {
    "name": "tiny_gpt", "num_layers": 4, "hidden_size": 32, "num_heads": 4,
    "ffn_hidden_size": 128, "vocab_size": 256, "max_sequence_length": 64, "position": "learned",
    "norm": "layernorm", "activation": "gelu_tanh", "bias": True, "tie_embeddings": True,
}  # fmt: skip
"""GPT-2-like (learned positions, layernorm, gelu, biases, tied)."""

GPT2_124M: dict[str, Any] = TINY_GPT | {
    "name": "gpt2_124m", "num_layers": 12, "hidden_size": 768, "num_heads": 12,
    "ffn_hidden_size": 3072, "vocab_size": 50257, "max_sequence_length": 1024,
}  # fmt: skip

LLAMA3_70B: dict[str, Any] = TINY | {
    "name": "llama3_70b", "num_layers": 80, "hidden_size": 8192, "num_heads": 64,
    "num_kv_heads": 8, "ffn_hidden_size": 28672, "vocab_size": 128256,
    "max_sequence_length": 8192, "rope_theta": 500000.0,
}  # fmt: skip

CPU: dict[str, Any] = {
    "name": "local", "device": "cpu", "num_nodes": 1, "gpus_per_node": None,
    "gpu": {
        "name": "cpu share", "memory_bytes": 4 * 2**30, "memory_bandwidth": 1e10,
        "peak_flops": {"fp32": 5e10, "bf16": 5e10}, "max_efficiency": 0.7,
        "op_overhead_s": 5e-6, "context_bytes": 4 * 10**8,
    },
    "node": {
        "name": "this machine", "bandwidth": 1e9, "latency_s": 5e-5,
        "host_memory_bytes": 16 * 2**30,
    },
}  # fmt: skip


def h100(num_nodes: int = 8, gpus_per_node: int = 8) -> dict[str, Any]:
    """H100 SXM nodes: round numbers near the data sheet's, for tests only."""
    return {
        "name": f"h100x{num_nodes * gpus_per_node}", "device": "cuda", "num_nodes": num_nodes,
        "gpus_per_node": gpus_per_node,
        "gpu": {
            "name": "H100 SXM", "memory_bytes": 85_520_809_984, "memory_bandwidth": 3.35e12,
            "peak_flops": {"fp32": 67e12, "bf16": 989.4e12}, "max_efficiency": 0.7,
            "op_overhead_s": 5e-6, "context_bytes": 2 * 10**9,
        },
        "node": {
            "name": "NVLink 4", "bandwidth": 450e9, "latency_s": 1e-5,
            "host_memory_bytes": 2 * 2**40,
        },
        "network": {"name": "InfiniBand NDR", "bandwidth": 50e9, "latency_s": 2e-5},
    }  # fmt: skip


def make_run(
    *,
    model: dict[str, Any] = TINY,
    hardware: dict[str, Any] = CPU,
    **overrides: Any,
) -> Run:
    """A valid run; overrides are `section={...}` or, by `**{...}`, dotted keys as on the CLI."""
    document: dict[str, Any] = {
        "model": dict(model),
        "hardware": dict(hardware),
        "parallelism": {"name": "test", "tp": 1, "pp": 1, "dp": 1},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "data": {"name": "stdlib_text", "kind": "stdlib_text", "dtype": "uint8"},
        "train": {"steps": 2, "micro_batch_size": 1, "num_microbatches": 2},
        "precision": {"name": "fp32", "compute": "fp32"},
        "launch": {"name": "local"},
    }
    for key, value in overrides.items():
        section, _, field = key.partition(".")
        if field:
            document[section] = {**document.get(section, {}), field: value}
        elif isinstance(value, dict):
            document[section] = {**document.get(section, {}), **value}
        else:
            document[section] = value
    return Run.model_validate(document)
