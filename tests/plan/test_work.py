"""FLOPs and activations against figures worked out on paper or published."""

import pytest

from launcher.config.schema import Model
from launcher.plan.work import (
    Shape,
    block_activation_bytes,
    forward_flops_per_token,
    head_activation_bytes,
    logit_temporary_bytes,
    model_flops_per_token,
)
from tests.factory import GPT2_124M, LLAMA3_70B

GPT3 = Model.model_validate(GPT2_124M | {
    "num_layers": 96, "hidden_size": 12288, "num_heads": 96, "ffn_hidden_size": 49152,
    "vocab_size": 51200, "max_sequence_length": 2048, "dropout": 0.1, "tie_embeddings": True,
})  # fmt: skip


def test_gpt3_forward_flops_are_the_sum_of_its_matrices_with_half_of_the_attention():
    l, h, s, v = 96, 12288, 2048, 51200  # noqa: E741
    on_paper = l * (24 * h * h + 2 * s * h) + 2 * h * v
    assert forward_flops_per_token(GPT3, s) == pytest.approx(on_paper, rel=1e-12)


def test_model_flops_are_three_forwards_whatever_is_recomputed():
    assert model_flops_per_token(GPT3, 2048) == 3 * forward_flops_per_token(GPT3, 2048)


def test_llama3_8b_flops_are_near_six_per_parameter():
    facts = {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "ffn_hidden_size": 14336}
    model = Model.model_validate(LLAMA3_70B | facts)
    matrices = 8_030_261_248 - 128256 * 4096  # without the token table, which is only looked up
    assert model_flops_per_token(model, 1) == pytest.approx(6 * matrices, rel=1e-3)


def test_a_window_as_long_as_the_sequence_changes_nothing():
    same = GPT3.model_copy(update={"sliding_window": 2048})
    shorter = GPT3.model_copy(update={"sliding_window": 512})
    assert forward_flops_per_token(same, 2048) == forward_flops_per_token(GPT3, 2048)
    assert forward_flops_per_token(shorter, 2048) < forward_flops_per_token(GPT3, 2048)


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("b", [1, 4])
def test_gpt_activations_are_table_2_of_the_selective_recomputation_paper(tp, b):
    # s b h (10 + 24 / t) with the S x S part gone, arXiv:2205.05198, plus one float per query.
    shape = Shape(micro_batch_size=b, sequence_length=2048, tp=tp, element_bytes=2)
    on_paper = 2048 * b * 12288 * (10 + 24 // tp)
    log_sum_exp = 2048 * b * 96 // tp * 4
    assert block_activation_bytes(GPT3, shape, "none") == on_paper + log_sum_exp


def test_full_recomputation_keeps_the_input_of_the_block_only():
    shape = Shape(micro_batch_size=2, sequence_length=2048, tp=8, element_bytes=2)
    assert block_activation_bytes(GPT3, shape, "full") == 2 * 2048 * 12288 * 2


def test_recomputing_more_keeps_less():
    shape = Shape(micro_batch_size=2, sequence_length=2048, tp=2, element_bytes=2)
    kept = [block_activation_bytes(GPT3, shape, mode) for mode in ("none", "selective", "full")]
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize("element_bytes", [2, 4])
def test_logits_are_kept_once_and_cut_by_tp(element_bytes):
    one = Shape(micro_batch_size=1, sequence_length=128, tp=1, element_bytes=element_bytes)
    two = Shape(micro_batch_size=1, sequence_length=128, tp=2, element_bytes=element_bytes)
    difference = head_activation_bytes(GPT3, one) - head_activation_bytes(GPT3, two)
    assert difference == 128 * 25600 * element_bytes


def test_the_float32_copy_of_the_logits_exists_only_where_they_are_narrower():
    wide = Shape(micro_batch_size=1, sequence_length=128, tp=1, element_bytes=4)
    narrow = Shape(micro_batch_size=1, sequence_length=128, tp=1, element_bytes=2)
    assert logit_temporary_bytes(GPT3, wide) == 0
    assert logit_temporary_bytes(GPT3, narrow) == 128 * 51200 * 4
