"""Cells as careful people write them: each is read as it is meant."""

import pytest

from launcher.plan.backtest import predict_row
from launcher.plan.backtest_words import read_recompute, zero_stage

from .test_backtest import FACTS
from .test_strangers_rows import job, llama


@pytest.mark.parametrize(
    ("text", "stage"),
    [("P_os", 1), ("Pos+g", 2), ("P_os + g + p", 3), ("weight-update sharding", 1),
     ("Sharding-2", 2), ("Gemini", 3), ("hybrid", 3), ("dp_shard=8 dp_replicate=8", 3),
     ("dp_shard=1, dp_replicate=8", 0), ("FSDP2 (no reshard)", 2), ("SHARD_GRAD_OP", 2),
     ("fsdp2, reshard_after_forward=False", 2), ("fsdp2 (reshard)", 3), ("HSDP 8x16", 3)],
)  # fmt: skip
def test_sharding_is_read_by_any_of_its_names(text, stage):
    assert zero_stage(text.lower(), 1) == stage


def test_stages_of_a_pipeline_gather_again_only_where_the_row_says_so():
    assert zero_stage("fsdp2", 4) == 2
    assert zero_stage("fsdp2 (reshard always)", 4) == 3


def test_zero_without_a_number_is_what_its_program_shards():
    assert job(source="somebody", zero_or_fsdp="ZeRO").layout.zero_stage == 1
    assert job(source="DeepSpeed ZeRO-3", zero_or_fsdp="ZeRO").layout.zero_stage == 3
    assert (
        "optimizer state sharded over dp" in predict_row(llama(zero_or_fsdp="zero"), FACTS).assumed
    )


@pytest.mark.parametrize(
    ("text", "ranks"),
    [("HSDP", 8), ("HSDP 4x16", 16), ("HSDP (16 shards x 4 replicas)", 16),
     ("hsdp, 2 replicas", 32), ("dp_shard=32 dp_replicate=2", 32),
     ("HSDP 8x16", 8), ("fsdp", None)],
)  # fmt: skip
def test_groups_of_shards_are_as_many_ranks_as_the_row_says(text, ranks):
    assert job(zero_or_fsdp=text).execution.shard_size == ranks


@pytest.mark.parametrize("text", ["HSDP", "FULL_SHARD", "dp_shard=64", "SHARD_GRAD_OP"])
def test_torchs_fsdp_has_torchs_kernels_by_any_of_its_names(text):
    assert job(zero_or_fsdp=text).execution.fusion == "eager"


def test_megatrons_fsdp_is_its_own_where_the_source_is_unknown_too():
    assert job(zero_or_fsdp="Megatron-FSDP").execution.fusion == "fused"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("half", ("full", 0.5)), ("5/80 layers", ("full", 1 / 16)),
     ("10 of 20 layers", ("full", 0.5)), ("full, method=block, num_layers=1", ("full", 0.1)),
     ("block (2 layers)", ("full", 0.2)), ("seq-sel", ("selective", 1.0)),
     ("attn+mlp", ("full", 1.0)), ("mla_up_proj, mlp", ("selective", 1.0)),
     ("minimal", ("selective", 1.0)), ("1 layer", ("full", 1.0))],
)  # fmt: skip
def test_recomputation_is_read_as_meant(text, meaning):
    kind, share = read_recompute(text, 80, 4, 2)
    assert (kind, pytest.approx(share)) == meaning


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("FP32 master weights, BF16 compute", "bf16"), ("fp32/bf16", "bf16"),
     ("fp32 grad accumulation", "bf16"), ("fp32", "fp32")],
)  # fmt: skip
def test_32_bits_beside_products_are_not_those_of_products(precision, kind):
    assert job(precision=precision).execution.matmul == kind


@pytest.mark.parametrize("stage", ["ddp", "zero1", "zero2"])
def test_32_bit_weights_are_4_bytes_and_their_own_master_copy(stage):
    found = job(precision="fp32", zero_or_fsdp=stage).execution
    assert (found.weight_bytes, found.gradient_bytes, found.state_bytes) == (4, 4, 8)


@pytest.mark.parametrize(
    ("notes", "fusion"),
    [("torch.compile", "compiled"), ("no torch.compile", "eager"), ("compile=False", "eager"),
     ("not compiled", "eager"), ("compiled blocks", "compiled")],
)  # fmt: skip
def test_a_note_that_nothing_is_compiled_is_none_that_it_is(notes, fusion):
    assert job(source="torchtitan", notes=notes).execution.fusion == fusion
