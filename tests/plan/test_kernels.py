"""Times of kernels: tiles, waves and memory, and what grows with what."""

import pytest

from launcher.config.schema import Gpu
from launcher.plan.collectives import SLOWDOWN, exposed_s
from launcher.plan.kernels import Gemm, attention_s, gemm_s
from tests.factory import h100

GPU = Gpu.model_validate(h100(1)["gpu"] | {"multiprocessors": 108})


def rate(m, n, k):
    gemm = Gemm(m=m, n=n, k=k)
    return gemm.flops / gemm_s(gemm, "bf16", GPU) / (GPU.peak_flops.bf16 * GPU.max_efficiency)


def test_large_products_come_near_the_best_rate_and_none_exceeds_it():
    assert 0.9 < rate(16384, 16384, 16384) < 1
    assert rate(128, 4096, 4096) < 0.5


def test_a_wave_that_is_hardly_filled_lowers_the_rate():
    # 12 x 9 tiles of 256 x 128 are one wave of 108, 12 x 10 are more
    assert rate(12 * 256, 9 * 128, 4096) > 1.1 * rate(12 * 256, 10 * 128, 4096)


def test_a_thin_product_is_bound_by_memory():
    gemm = Gemm(m=1, n=16384, k=16384)
    least = gemm.bytes_moved / GPU.memory_bandwidth
    assert gemm_s(gemm, "bf16", GPU) > least


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_attention_is_faster_per_flop_on_longer_sequences_and_wider_heads(direction):
    def seconds(keys, head):
        return attention_s(1e15, keys, head, "flash", "bf16", direction, GPU)

    assert seconds(16384, 128) < seconds(512, 128)
    assert seconds(4096, 128) < seconds(4096, 64)


def test_hidden_communication_slows_what_it_hides_behind():
    assert exposed_s(0.0, 1.0) == 0
    assert exposed_s(0.5, 1.0) == pytest.approx(0.5 * SLOWDOWN)
    assert exposed_s(5.0, 1.0) == pytest.approx(4.0)


def test_a_device_without_fp8_runs_it_as_bf16():
    gemm = Gemm(m=4096, n=4096, k=4096)
    assert gemm_s(gemm, "fp8", GPU) == gemm_s(Gemm(*gemm), "bf16", GPU)
