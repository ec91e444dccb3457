"""What this machine has, read without torch: GPUs through NVML, CPUs through /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from launcher.frozen import frozen

# float32 operations per cycle and core: two fused multiply-add units (2 FLOP each) of the widest
# vector registers (AVX-512: 16 lanes, AVX2: 8, else 4).
_FLOPS_PER_CYCLE = {"avx512f": 64, "avx2": 32}
_BASE_FLOPS_PER_CYCLE = 16
_DEFAULT_CLOCK_HZ = 2.5e9
# Per process, beyond what the formulas count: 245 MiB are resident after the imports. The rest is
# from the quickstart's peaks, 2 to 15 % below what this gives: groups of ranks, and freed blocks
# that glibc keeps on its heap (far fewer with MALLOC_MMAP_THRESHOLD_=131072, but then a step takes
# 1.3 times as long).
_CPU_CONTEXT_BYTES = 590 * 2**20
# As measured on two cores of a virtual machine: share of the vector units' peak that products of
# 64 to 1,536 columns reach, and the same of torch's attention on long sequences.
_CPU_EFFICIENCY = 0.5
_CPU_ATTENTION = {"forward": 0.44, "backward": 0.40}
_CPU_OP_S = 15e-6
THREADS_SHARE = 0.8
"""Of its cores, what a process with several makes use of: two threads are 1.5 to 1.7 times as quick
as one, on this machine's two cores."""
# A message between processes that compute in between and sleep while they wait: 0.8 to 1.2 ms,
# nearly all of it waking up. Bare machines are quicker; `launch calibrate` measures it.
_GLOO_MESSAGE_S = 0.9e-3


@frozen
class LocalGpu:
    """One GPU as NVML names it."""

    name: str
    memory_bytes: int


@frozen
class LocalMachine:
    """Facts of this machine."""

    gpus: tuple[LocalGpu, ...]
    cores: int
    """Cores that this process may use."""
    clock_hz: float
    flops_per_cycle: int
    """float32, per core."""
    memory_bytes: int
    """RAM."""


def detect_machine(
    proc: Path = Path("/proc"), cpus: Path = Path("/sys/devices/system/cpu")
) -> LocalMachine:
    """Look at this machine; what cannot be read is taken at a cautious default."""
    from launcher.config.nvml import detect_gpus  # ctypes, which no other hardware needs

    cpu = _read(proc / "cpuinfo")
    flags = set(_field(cpu, "flags").split())
    kib = _field(_read(proc / "meminfo"), "MemTotal").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return LocalMachine(
        gpus=detect_gpus(),
        cores=cores or 1,
        clock_hz=_clock_hz(cpu, cpus),
        flops_per_cycle=next(
            (flops for flag, flops in _FLOPS_PER_CYCLE.items() if flag in flags),
            _BASE_FLOPS_PER_CYCLE,
        ),
        memory_bytes=int(kib[0]) * 1024 if kib else 8 * 2**30,
    )


def _clock_hz(cpu: str, cpus: Path) -> float:
    """The highest clock: the present one goes up and down, and plans with it."""
    if highest_khz := _read(cpus / "cpu0" / "cpufreq" / "cpuinfo_max_freq").strip():
        return float(highest_khz) * 1e3
    present_mhz = _field(cpu, "cpu MHz")
    return float(present_mhz) * 1e6 if present_mhz else _DEFAULT_CLOCK_HZ


def core_peak_flops(machine: LocalMachine) -> float:
    """Float32 peak of one core."""
    return machine.clock_hz * machine.flops_per_cycle


def cpu_facts(machine: LocalMachine, processes: int) -> dict[str, Any]:
    """`hardware.gpu` and `hardware.node` of a CPU machine whose cores `processes` workers share."""
    share = max(1, processes)
    # More processes than cores take turns on them.
    cores = machine.cores / share
    cores = cores if cores < 1 else machine.cores // share  # a thread each
    peak = cores * machine.clock_hz * machine.flops_per_cycle
    used = THREADS_SHARE if cores > 1 else 1.0
    return {
        "gpu": {
            "name": f"cpu ({machine.cores} cores / {share} processes)",
            "memory_bytes": machine.memory_bytes // share,
            # One DDR4-3200 channel moves 25.6e9 B/s; two are the least that servers have.
            "memory_bandwidth": 2 * 25.6e9 / share,
            # bf16 without AMX is emulated through float32.
            "peak_flops": {"fp32": peak, "bf16": peak / 4},
            "max_efficiency": used * _CPU_EFFICIENCY,
            "flash_attention": {pass_: used * rate for pass_, rate in _CPU_ATTENTION.items()},
            "core_share": min(1.0, cores),
            "op_overhead_s": _CPU_OP_S / min(1.0, cores),
            "context_bytes": _CPU_CONTEXT_BYTES,
        },
        "node": {
            "name": "loopback (gloo)",
            "bandwidth": 1.5e9 / share,
            "latency_s": _GLOO_MESSAGE_S / min(1.0, cores),
            "host_memory_bytes": machine.memory_bytes,
        },
    }


def gpu_options(name: str) -> tuple[str, str] | None:
    """The options under conf/hardware/gpu and conf/hardware/node with the facts of a GPU, by its
    product name; None: there are none.

    gpu_options("NVIDIA A100 80GB PCIe") -> ("a100_pcie_80gb", "pcie4")
    """
    words = set(re.findall(r"[A-Z0-9]+", name.upper()))
    for marks, options in _KNOWN_GPUS:
        if words.issuperset(marks.split()):
            return options
    return None


_KNOWN_GPUS = (
    ("GB300", ("gb300", "nvl72")),
    ("GB200", ("gb200", "nvl72")),
    ("GH200", ("gh200_96gb", "gh200")),
    ("B300", ("b300_sxm", "hgx_b200")),
    ("B200", ("b200_sxm", "hgx_b200")),
    ("H200", ("h200_sxm", "hgx_h100")),
    ("H800", ("h800_sxm", "hgx_h800")),
    ("H100 PCIE", ("h100_pcie_80gb", "pcie5")),
    ("H100", ("h100_sxm", "hgx_h100")),
    ("H20", ("h20", "hgx_h100")),
    ("A800", ("a100_80gb", "hgx_a800")),
    ("A100 PCIE 40GB", ("a100_pcie_40gb", "pcie4")),
    ("A100 PCIE", ("a100_pcie_80gb", "pcie4")),
    ("A100 40GB", ("a100_40gb", "hgx_a100")),
    ("A100", ("a100_80gb", "hgx_a100")),
    ("V100 PCIE", ("v100_sxm2_32gb", "pcie3")),
    ("V100 32GB", ("v100_sxm2_32gb", "dgx1_v100")),
    ("V100", ("v100_sxm2_16gb", "dgx1_v100")),
    ("L40S", ("l40s", "pcie4")),
    ("A40", ("a40", "pcie4")),
    ("4090", ("rtx_4090", "pcie4")),
)
"""Words of a product's name, the more particular ones first. V100 on PCIe is about a tenth
slower than SXM2."""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _field(text: str, key: str) -> str:
    """The value of the first `key : value` line; empty where there is none."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
