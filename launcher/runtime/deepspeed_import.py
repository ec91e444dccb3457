"""DeepSpeed as a rank needs it: for its device, quietly, and without what nobody uses."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist

from launcher.runtime.groups import Groups


def import_deepspeed(groups: Groups) -> Any:
    """Import DeepSpeed for this rank's device, with torch.distributed ready for it."""
    if not dist.is_initialized():
        assert groups.world_size == 1
        backend = "nccl" if groups.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # Read at import: without it a CPU run on a machine with GPUs would compute on a GPU.
    os.environ.setdefault("DS_ACCELERATOR", groups.device.type)
    import deepspeed

    _spare_inductor()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that newer versions of torch warn about.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    if groups.device.type == "cpu":
        # It would compile a shared-memory all-reduce that only inference uses
        # (`TorchBackend.inference_all_reduce`), on every rank, and fail without a compiler.
        deepspeed.ops.__compatible_ops__ = {}
    # Modules stay: DeepSpeed collects garbage as it starts, and would look through all of them.
    gc.freeze()
    return deepspeed


def _spare_inductor() -> None:
    """Import DeepSpeed's Muon uncompiled: `initialize` imports it for every optimizer.

    It compiles a function as it is imported, and torch.compile imports Inductor for that: more
    than a second per rank, for an optimizer that no run here uses.
    """
    compiler = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    except ImportError:  # Versions without it.
        pass
    finally:
        torch.compile = compiler
