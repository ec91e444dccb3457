"""The GPUs of this machine, as NVIDIA's management library knows them."""

from __future__ import annotations

import ctypes
import os

from launcher.config.local_hardware import LocalGpu


def detect_gpus() -> tuple[LocalGpu, ...]:
    """All GPUs that NVML sees and CUDA_VISIBLE_DEVICES leaves; none without a driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()
    if nvml.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return ()
        gpus = [_read_gpu(nvml, index) for index in range(count.value)]
    finally:
        nvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = gpus[: len([part for part in visible.split(",") if part.strip()])]
    return tuple(gpu for gpu in gpus if gpu is not None)


class _NvmlMemory(ctypes.Structure):
    """nvmlMemory_t of the NVML reference."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def _read_gpu(nvml: ctypes.CDLL, index: int) -> LocalGpu | None:
    handle = ctypes.c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return None
    name = ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetName(handle, name, 96)
    memory = _NvmlMemory()
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    return LocalGpu(name=name.value.decode(errors="replace"), memory_bytes=int(memory.total))
