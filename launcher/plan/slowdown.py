"""Devices and links as slow as this cluster's finished runs say: `hardware.slowdown`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from launcher.config.hardware_schema import AttentionRates, Gpu, Network, Node
from launcher.config.schema import Hardware


def slowed(hardware: Hardware) -> Hardware:
    """Hardware on which everything takes `slowdown` times as long; itself where there is none.

    Rates are what large operators reach of the peaks, which stay: utilisation is a share of these.
    """
    return hardware if hardware.slowdown in (None, 1.0) else _slowed(hardware)


@lru_cache(maxsize=16)
def _slowed(hardware: Hardware) -> Hardware:
    times = hardware.slowdown
    assert times is not None
    gpu, node, network = hardware.gpu, hardware.node, hardware.network
    return hardware.model_copy(
        update={
            "gpu": gpu and _gpu(gpu, times),
            "node": node and _node(node, times),
            "network": network and _network(network, times),
            "slowdown": None,
        }
    )


def _gpu(gpu: Gpu, times: float) -> Gpu:
    changed: dict[str, Any] = {
        "max_efficiency": gpu.max_efficiency / times,
        "memory_efficiency": gpu.memory_efficiency / times,
        "fp8_efficiency": gpu.fp8_efficiency and gpu.fp8_efficiency / times,
        "op_overhead_s": gpu.op_overhead_s * times,
        "step_overhead_s": gpu.step_overhead_s * times,
        "kernels": tuple(
            kernel.model_copy(update={"seconds": kernel.seconds * times}) for kernel in gpu.kernels
        ),
    }
    for name in ("flash_attention", "triton_attention", "cudnn_attention"):
        rates: AttentionRates | None = getattr(gpu, name)
        changed[name] = rates and rates.model_copy(
            update={"forward": rates.forward / times, "backward": rates.backward / times}
        )
    return gpu.model_copy(update=changed)


def _node(node: Node, times: float) -> Node:
    changed = _link(node, times)
    for name in ("host_link_bandwidth", "host_memory_bandwidth"):
        changed[name] = getattr(node, name) / times
    return node.model_copy(update=changed)


def _network(network: Network, times: float) -> Network:
    return network.model_copy(update=_link(network, times))


def _link(link: Node | Network, times: float) -> dict[str, Any]:
    return {
        "efficiency": link.efficiency / times,
        "latency_s": link.latency_s * times,
        "ll128_latency_s": link.ll128_latency_s and link.ll128_latency_s * times,
    }
