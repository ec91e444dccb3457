"""Parameters: counts to the last one, and shards that add up."""

import math

import pytest

from launcher.config.schema import Experts, Model
from launcher.plan.costs import count_parameters, parameter_table, sum_sizes
from tests.factory import GPT2_124M, LLAMA3_70B, TINY, TINY_GPT

GPT = GPT2_124M
LLAMA = LLAMA3_70B

# Published: GPT-2 from the released checkpoints' tensors; Llama, Mistral and Yi from the
# `total_size` of the safetensors indices on the Hugging Face hub (bytes / 2 in bfloat16).
PUBLISHED = [
    ("gpt2", GPT, 124_439_808),
    ("gpt2_medium", GPT | {"num_layers": 24, "hidden_size": 1024, "num_heads": 16,
                           "ffn_hidden_size": 4096}, 354_823_168),
    ("gpt2_large", GPT | {"num_layers": 36, "hidden_size": 1280, "num_heads": 20,
                          "ffn_hidden_size": 5120}, 774_030_080),
    ("gpt2_xl", GPT | {"num_layers": 48, "hidden_size": 1600, "num_heads": 25,
                       "ffn_hidden_size": 6400}, 1_557_611_200),
    ("llama2_7b", LLAMA | {"num_layers": 32, "hidden_size": 4096, "num_heads": 32,
                           "num_kv_heads": 32, "ffn_hidden_size": 11008, "vocab_size": 32000},
     6_738_415_616),
    ("llama2_13b", LLAMA | {"num_layers": 40, "hidden_size": 5120, "num_heads": 40,
                            "num_kv_heads": 40, "ffn_hidden_size": 13824, "vocab_size": 32000},
     13_015_864_320),
    ("llama2_70b", LLAMA | {"vocab_size": 32000}, 68_976_648_192),
    ("llama3_8b", LLAMA | {"num_layers": 32, "hidden_size": 4096, "num_heads": 32,
                           "ffn_hidden_size": 14336}, 8_030_261_248),
    ("llama3_70b", LLAMA, 70_553_706_496),
    ("llama3_405b", LLAMA | {"num_layers": 126, "hidden_size": 16384, "num_heads": 128,
                             "ffn_hidden_size": 53248}, 405_853_388_800),
    ("mistral_7b", LLAMA | {"num_layers": 32, "hidden_size": 4096, "num_heads": 32,
                            "ffn_hidden_size": 14336, "vocab_size": 32000}, 7_241_732_096),
    ("yi_6b", LLAMA | {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 4,
                       "ffn_hidden_size": 11008, "vocab_size": 64000}, 6_061_035_520),
    ("yi_34b", LLAMA | {"num_layers": 60, "hidden_size": 7168, "num_heads": 56,
                        "ffn_hidden_size": 20480, "vocab_size": 64000}, 34_388_917_248),
]  # fmt: skip


@pytest.mark.parametrize(("name", "facts", "published"), PUBLISHED)
def test_count_equals_the_published_one_to_the_parameter(name, facts, published):
    model = Model.model_validate(facts | {"name": name})
    assert count_parameters(model) == published
    assert sum_sizes(parameter_table(model)) == published


def test_head_dim_may_differ_from_hidden_over_heads():
    narrow = Model.model_validate(TINY)
    wide = Model.model_validate(TINY | {"head_dim": 16})
    extra = 4 * 32 * (16 - 8) * (4 + 4 + 2 + 2)  # layers x hidden x width x heads of q, out, k, v
    assert count_parameters(wide) - count_parameters(narrow) == extra


def test_names_are_the_contract():
    names = [spec.name for spec in parameter_table(Model.model_validate(TINY | {"num_layers": 1}))]
    assert names == [
        "embedding.tokens.weight", "layers.0.attention_norm.weight",
        "layers.0.attention.q_proj.weight", "layers.0.attention.k_proj.weight",
        "layers.0.attention.v_proj.weight", "layers.0.attention.out_proj.weight",
        "layers.0.mlp_norm.weight", "layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight",
        "layers.0.mlp.down_proj.weight", "final_norm.weight", "head.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("facts", [TINY, TINY_GPT, LLAMA])
def test_names_are_unique(facts):
    names = [spec.name for spec in parameter_table(Model.model_validate(facts))]
    assert len(set(names)) == len(names)


def shapes(facts, tp):
    table = parameter_table(Model.model_validate(facts))
    return {spec.name: spec.local_shape(tp) for spec in table}


def test_columns_cut_outputs_and_rows_cut_inputs():
    local = shapes(TINY_GPT, 2)
    assert local["layers.0.attention.q_proj.weight"] == (16, 32)
    assert local["layers.0.attention.q_proj.bias"] == (16,)
    assert local["layers.0.attention.out_proj.weight"] == (32, 16)
    assert local["layers.0.attention.out_proj.bias"] == (32,)
    assert local["layers.0.mlp.up_proj.weight"] == (64, 32)
    assert local["layers.0.mlp.down_proj.weight"] == (32, 64)
    assert local["layers.0.attention_norm.weight"] == (32,)
    assert local["embedding.positions.weight"] == (64, 32)
    assert "head.weight" not in local


def test_kv_heads_are_replicated_where_tp_exceeds_them():
    assert shapes(TINY, 2)["layers.0.attention.k_proj.weight"] == (8, 32)
    assert shapes(TINY, 4)["layers.0.attention.k_proj.weight"] == (8, 32)
    assert shapes(TINY, 4)["layers.0.attention.q_proj.weight"] == (8, 32)


def test_vocabulary_is_padded_to_a_multiple_of_tp():
    assert shapes(GPT, 8)["embedding.tokens.weight"] == (math.ceil(50257 / 8), 768)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("facts", [TINY, TINY_GPT])
def test_shards_add_up_to_the_whole(facts, tp):
    for spec in parameter_table(Model.model_validate(facts)):
        copies = 1 if spec.tp_dim is not None else tp
        assert tp * spec.local_size(tp) == copies * spec.size


@pytest.mark.parametrize("dense", range(4))
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_blocks_without_experts_are_counted_as_they_lie(dense, every):
    experts = Experts(num_experts=4, experts_per_token=1, ffn_hidden_size=64,
                      num_dense_layers=dense, every=every)  # fmt: skip
    plain = [layer < dense or layer % every != every - 1 for layer in range(13)]
    assert [experts.is_plain(layer) for layer in range(13)] == plain
    for first in range(13):
        for end in range(first, 13):
            assert experts.count_plain(first, end) == sum(plain[first:end])


@pytest.mark.parametrize("num_layers", [4, 5])
def test_every_parameter_of_a_mixture_is_counted_once(num_layers):
    experts = {"num_experts": 4, "experts_per_token": 1, "ffn_hidden_size": 64, "every": 2}
    model = Model.model_validate(TINY | {"num_layers": num_layers, "experts": experts})
    assert count_parameters(model) == sum_sizes(parameter_table(model))
    assert [model.usual_block, model.num_plain] == [3, num_layers - 2]
