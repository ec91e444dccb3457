"""Rows whose state waits in the node's RAM: what is said to, and what that leaves on a device."""

import pytest

from launcher.plan.backtest import predict_row
from launcher.plan.backtest_rows import read_row

from .test_backtest import FACTS
from .test_strangers_rows import job, llama


@pytest.mark.parametrize(
    ("words", "place"),
    [("ZeRO-Infinity", "parameters"), ("FSDP, cpu_offload=True", "parameters"),
     ("FSDP CPU offload", "parameters"), ("ZeRO-3, offload (optimizer + params)", "parameters"),
     ("zero3, offload_param: cpu", "parameters"), ("ZeRO-2, offload_optimizer: cpu", "optimizer"),
     ("zero3, optimizer offload, no parameter offload", "optimizer"),
     ("fsdp, cpu_offload=False", "none"), ("zero2, offload: none", "none"),
     ("zero3, not offloaded", "none"), ("zero3, no optimizer offload", "none"),
     ("ZeRO-Infinity (no offload)", "none"), ("no offload of weights, ZeRO-Offload", "optimizer")],
)  # fmt: skip
def test_what_is_offloaded_is_read_as_said(words, place):
    assert job(zero_or_fsdp=words).execution.offload == place


def one_v100(**cells):
    """10 billion parameters on one device of 32 GB, whose weights alone take 19 GiB."""
    sizes = {"layers": 50, "hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 16384}
    return llama(**sizes | {
        "model": "gpt", "params_b": 10.3, "seq": 1024, "vocab": 50257,
        "gpu": "V100-32GB", "gpus": 1, "source": "DeepSpeed", "global_batch": 8,
        "recompute": "full", "precision": "fp16", "zero_or_fsdp": "ZeRO-Offload",
    } | cells)  # fmt: skip


def test_gradients_wait_beside_the_optimizer_that_deepspeed_offloads():
    answer = predict_row(one_v100(), FACTS)
    assert answer.predicted_fits
    assert 2 * 10.28e9 < answer.predicted_memory_bytes < 2.3 * 10.28e9
    kept = read_row(one_v100(source="Megatron-Core"), FACTS).job.execution
    assert (kept.offload, kept.offloads_gradients) == ("optimizer", False)
