"""The DeepSpeed config: every key known, none but those that were decided."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.render.deepspeed import render_deepspeed_config
from tests.factory import make_run
from tests.runtime.stages import make_layout

# DeepSpeed 0.19 reads these at the top level and passes over any other key without a word.
TOP_LEVEL = {
    "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "zero_allow_untested_optimizer", "zero_optimization", "bf16", "data_types",
    "communication_data_type",
}  # fmt: skip
GRID = [(stage, compute) for stage in (0, 1, 2, 3) for compute in ("fp32", "bf16")]


def render(stage: int, compute: str, clip: float | None = 1.0, **sizes: Any) -> dict[str, Any]:
    run = make_run(
        precision={"name": compute, "compute": compute}, **{"optimizer.clip_grad_norm": clip}
    )
    return render_deepspeed_config(run, make_layout(zero_stage=stage, dp=2, **sizes))


@pytest.mark.parametrize(("stage", "compute"), GRID)
def test_only_keys_that_deepspeed_reads_are_emitted(stage: int, compute: str) -> None:
    assert set(render(stage, compute)) <= TOP_LEVEL


@pytest.mark.parametrize(("stage", "compute"), GRID)
def test_deepspeed_accepts_every_value_below_the_top_level(stage: int, compute: str) -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.config")
    precision = pytest.importorskip("deepspeed.runtime.precision_config")
    config = render(stage, compute)
    unknown = set(config["zero_optimization"]) - _names(zero.DeepSpeedZeroConfig)
    assert not unknown
    zero.DeepSpeedZeroConfig(**config["zero_optimization"])
    if compute == "bf16":
        assert set(config["bf16"]) <= _names(precision.DeepSpeedBF16Config)


def _names(model: Any) -> set[str]:
    return set(model.model_fields) | {field.alias for field in model.model_fields.values()}


@pytest.mark.parametrize(("stage", "compute"), GRID)
def test_the_config_is_the_layout_in_deepspeeds_words(stage: int, compute: str) -> None:
    config = render(stage, compute, num_microbatches=5, micro_batch_size=3)
    assert json.loads(json.dumps(config)) == config
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_accumulation_steps"] == 5
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert "train_batch_size" not in config


def test_bfloat16_adds_and_reduces_gradients_in_float32() -> None:
    config = render(1, "bf16")
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    assert "bf16" not in render(1, "fp32")


def test_no_clipping_is_zero_to_deepspeed() -> None:
    assert render(1, "fp32", clip=None)["gradient_clipping"] == 0.0
    assert render(1, "fp32", clip=0.5)["gradient_clipping"] == 0.5


def test_only_stage_3_reduces_beside_the_backward() -> None:
    overlap = [render(s, "fp32")["zero_optimization"].get("overlap_comm") for s in (1, 2, 3)]
    assert overlap == [False, False, True]
