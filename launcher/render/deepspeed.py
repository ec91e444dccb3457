"""What DeepSpeed is told: only keys that were decided here, because it does not refuse typos."""

from __future__ import annotations

from typing import Any

from launcher.config.schema import Run
from launcher.plan.memory_held import BUCKET_ELEMENTS
from launcher.plan.records import Layout


def render_deepspeed_config(run: Run, layout: Layout) -> dict[str, Any]:
    """The content of `ds_config.json`.

    Batch keys are per rank, never the global batch: DeepSpeed checks that one against the
    processes that it can see, which is one on the machine that renders.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.num_microbatches,
        "gradient_clipping": run.optimizer.clip_grad_norm or 0.0,
        # torch's optimizers are not on DeepSpeed's list of tested ones; our parity tests are.
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero(layout),
    }
    if run.precision.compute == "bf16":
        # Gradients of microbatches are added, and reduced over dp, in float32.
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def _zero(layout: Layout) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": layout.zero_stage}
    if layout.zero_stage == 0:
        return zero
    zero |= {
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "contiguous_gradients": True,
        # Only stage 3 reduces while backward still runs in every layout.
        "overlap_comm": layout.zero_stage == 3,
    }
    if layout.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            # Norms and biases are too small to be worth a gather each.
            "stage3_param_persistence_threshold": 100_000,
        }
    return zero
