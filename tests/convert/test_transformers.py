"""Do transformers' own classes and ours compute the same logits from the same weights?

Real classes with random weights, biases and norms included; the folders are written and read by
transformers itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from launcher.checkpoint.source import TensorSource
from launcher.config.schema import Model
from launcher.convert.convert import Conversion, convert
from launcher.convert.source import open_weights, weights_folder
from launcher.runtime.model import ForwardContext, build_stage
from launcher.runtime.reference import whole_model
from tests.convert.folders import random_weights, write_checkpoint
from tests.factory import TINY, TINY_GPT, make_run
from tests.runtime.stages import make_groups, make_layout

LENGTH = 24
LOGITS = 1e-4
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_GPT = {
    "n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 61, "n_positions": 32,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LLAMA = {
    "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 61, "max_position_embeddings": 64,
}  # fmt: skip
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT),
    "gpt2 untied, narrow mlp, relu": (
        "GPT2", _GPT | {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "relu"}
    ),
    "llama": ("Llama", _LLAMA),
    "llama without groups": ("Llama", _LLAMA | {"num_key_value_heads": 4}),
    "llama tied, stretched positions": (
        "Llama", _LLAMA | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}
    ),
    "llama with biases, wide heads": (
        "Llama", _LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}
    ),
    "mistral with a window": ("Mistral", _LLAMA | {"sliding_window": 5}),
    "mistral without, wide heads": (
        "Mistral", _LLAMA | {"sliding_window": None, "head_dim": 12}
    ),
}  # fmt: skip
OURS: dict[str, dict[str, Any]] = {
    "gpt2": TINY_GPT,
    "gpt2 untied": TINY_GPT | {"tie_embeddings": False, "activation": "gelu"},
    "llama2": TINY | {"num_kv_heads": None},
    "llama3": TINY | {
        "rope_theta": 500000.0, "tie_embeddings": True,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position": 16,
        },
    },
    "mistral": TINY | {"sliding_window": 5},
    "yi": TINY | {"num_kv_heads": 1, "rope_theta": 5e6},
    "wide heads": TINY | {"head_dim": 16, "bias": True},
}  # fmt: skip


def random_model(kind: str, settings: dict[str, Any]) -> Any:
    """One of their classes, every parameter random."""
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def tokens(vocab_size: int) -> torch.Tensor:
    return torch.randint(vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(5))


def their_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(model.config.vocab_size)).logits


def our_logits(model: Model, source: TensorSource) -> torch.Tensor:
    """What the head of our model makes; its loss must be that of the same logits."""
    fields = model.model_dump() | {"dropout": 0.0, "attention_dropout": 0.0}
    run = make_run(model=fields)
    layout = make_layout(sequence_length=LENGTH)
    module = build_stage(run, layout, whole_model(run), make_groups(run, layout)).eval()
    for parameter in module.parameters():
        shard = parameter.shard
        box = source.read(shard.name, (0,) * len(shard.full_shape), shard.full_shape)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(box)))
    seen = []
    module.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids = tokens(model.vocab_size)
    labels = ids.roll(-1, dims=1)
    with torch.no_grad():
        loss = module(ids, ForwardContext(labels_BS=labels, step=0, first_sample=0))
        logits = functional.linear(seen[0], module.head.weight)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    return logits


def opened(folder: Path) -> Any:
    return open_weights(*weights_folder(folder))


@pytest.mark.parametrize("case", THEIRS)
def test_their_weights_give_their_logits_in_our_model(case, tmp_path):
    theirs = random_model(*THEIRS[case])
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    expected = their_logits(theirs)
    # Directly from their folder, and from what convert makes of it.
    convert(Conversion(source=tmp_path / "hf", destination=tmp_path / "ours"))
    for folder in ("hf", "ours"):
        weights = opened(tmp_path / folder)
        gap = (our_logits(weights.model, weights.source) - expected).abs().max()
        assert gap.item() < LOGITS
    # And back, bit for bit.
    convert(
        Conversion(source=tmp_path / "ours", destination=tmp_path / "back", max_shard_size="20KB")
    )
    back = type(theirs).from_pretrained(tmp_path / "back")
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name
    assert torch.equal(their_logits(back.eval()), expected)
    same = {"_name_or_path", "n_inner", "dtype", "torch_dtype"}
    before, after = theirs.config.to_dict(), back.config.to_dict()
    assert {k: v for k, v in before.items() if after[k] != v and k not in same} == {}


@pytest.mark.parametrize("case", OURS)
def test_our_weights_give_our_logits_in_their_model(case, tmp_path):
    model = Model.model_validate(OURS[case] | {"vocab_size": 97})
    weights = {name: 0.3 * values for name, values in random_weights(model).items()}
    write_checkpoint(tmp_path / "ours", model, weights)
    convert(Conversion(source=tmp_path / "ours", destination=tmp_path / "hf"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    gap = (our_logits(model, opened(tmp_path / "ours").source) - their_logits(theirs)).abs()
    assert gap.max().item() < LOGITS


def test_bfloat16_goes_through_float32_masters_and_back_unchanged(tmp_path):
    theirs = random_model("Llama", _LLAMA).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "hf")
    convert(Conversion(source=tmp_path / "hf", destination=tmp_path / "ours"))
    convert(Conversion(source=tmp_path / "ours", destination=tmp_path / "back", dtype="bfloat16"))
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert back.dtype == torch.bfloat16
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name


def test_rounding_to_bfloat16_is_torchs():
    from launcher.convert.numbers import from_float32, to_float32

    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, 1e-40, 1.00390625]
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor(special), torch.randn(10_000, generator=generator)])
    ours = to_float32(from_float32(values.numpy(), "BF16"), "BF16")
    assert torch.equal(
        torch.from_numpy(ours).nan_to_num(7), values.bfloat16().float().nan_to_num(7)
    )
