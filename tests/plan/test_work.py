"""FLOPs against figures worked out on paper or published."""

import pytest

from launcher.config.schema import Model
from launcher.plan.work import forward_flops_per_token, model_flops_per_token
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
