"""The decoder in one process: names, initial values, numbers against plain formulas, dropout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from launcher.config.schema import Model, RopeScaling
from launcher.plan.costs import parameter_table
from launcher.runtime.model import ForwardContext, StageModule, build_stage, tied_parameter
from launcher.runtime.model.attention import _rope_angles
from launcher.runtime.parallel.cross_entropy import cross_entropy
from launcher.runtime.parallel.shard import local_shards
from tests.factory import TINY, make_run
from tests.runtime.stages import (
    GPT,
    LLAMA,
    MODELS,
    loss_and_gradients,
    make_batch,
    make_groups,
    make_layout,
    make_module,
    make_stage,
)


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_those_of_the_parameter_table(name: str) -> None:
    module, run = make_module(MODELS[name])
    found = {key: tuple(value.shape) for key, value in module.named_parameters()}
    assert found == {spec.name: spec.shape for spec in parameter_table(run.model)}
    for local, shard in local_shards(module).items():
        assert (shard.name, shard.full_shape, shard.owner) == (local, found[local], True)


def build_stages(model: dict[str, Any], num_stages: int) -> list[StageModule]:
    """All stages of a pipeline, in this process."""
    run, layout = make_run(model=model), make_layout()
    groups = make_groups(run, layout)
    stages = (make_stage(run.model.num_layers, s, num_stages) for s in range(num_stages))
    return [build_stage(run, layout, stage, groups) for stage in stages]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_stages", [2, 3])
def test_stages_in_a_row_are_the_whole_model_bit_for_bit(name: str, num_stages: int) -> None:
    whole, _ = make_module(MODELS[name])
    window = make_batch(257)
    context = ForwardContext(labels_BS=window[:, 1:], step=0, first_sample=0)
    x, weights = window[:, :-1], dict(whole.named_parameters())
    for module in build_stages(MODELS[name], num_stages):
        for local, shard in local_shards(module).items():
            assert torch.equal(module.get_parameter(local), weights[shard.name])
        x = module(x, context)
    assert torch.equal(x, whole(window[:, :-1], context))


def test_tied_copy_on_the_last_stage_belongs_to_the_first() -> None:
    first, middle, last = build_stages(GPT, 3)
    assert tied_parameter(middle) is None
    assert tied_parameter(first) is first.embedding.tokens.weight
    copy = tied_parameter(last)
    assert copy is last.head.weight
    assert torch.equal(copy, tied_parameter(first))
    shard = local_shards(last)["head.weight"]
    assert (shard.name, shard.owner) == ("embedding.tokens.weight", False)
    assert copy.ds_pipe_replicated
    assert not tied_parameter(first).ds_pipe_replicated
    assert tied_parameter(make_module(GPT)[0]) is None
    assert tied_parameter(build_stages(LLAMA, 2)[0]) is None


def test_initial_values_have_the_wanted_spread() -> None:
    module, run = make_module(GPT | {"hidden_size": 128, "ffn_hidden_size": 512})
    std = run.model.init_std
    for name, parameter in module.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            is_residual = "out_proj" in name or "down_proj" in name
            wanted = std / math.sqrt(2 * run.model.num_layers) if is_residual else std
            assert parameter.std().item() == pytest.approx(wanted, rel=0.05)
            assert abs(parameter.mean().item()) < 0.05 * wanted


def test_initial_values_depend_on_seed_and_name() -> None:
    one, two = make_module(LLAMA)[0], make_module(LLAMA, **{"train.seed": 9})[0]
    assert not torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, one.embedding.tokens.weight)


def test_untrained_loss_is_that_of_guessing() -> None:
    loss, _ = loss_and_gradients(make_module(LLAMA)[0], make_batch(257))
    assert loss.item() == pytest.approx(math.log(257), abs=0.05)


def reference_loss(module: StageModule, model: Model, window: torch.Tensor) -> torch.Tensor:
    """The same decoder by its formulas: explicit rotations, explicit masks, torch's loss."""
    w = dict(module.named_parameters())
    length, size = window.shape[1] - 1, model.head_size
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    visible = (j <= i) & (j > i - (model.sliding_window or length))
    angles = _rope_angles(model, length)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]

    def norm(x: torch.Tensor, at: str) -> torch.Tensor:
        if model.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + model.norm_eps).sqrt() * w[f"{at}.weight"]
        return x + w[f"{at}.bias"] if model.norm == "layernorm" else x

    def linear(x: torch.Tensor, at: str) -> torch.Tensor:
        return x @ w[f"{at}.weight"].T + w.get(f"{at}.bias", 0)

    def heads(x: torch.Tensor, at: str, rotated: bool) -> torch.Tensor:
        x = linear(x, at).unflatten(-1, (-1, size))
        if rotated and model.position == "rope":
            pairs = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
            x = torch.cat((pairs.real, pairs.imag), -1)
        return x.repeat_interleave(model.num_heads // x.shape[2], dim=2).transpose(1, 2)

    x = w["embedding.tokens.weight"][window[:, :-1]]
    if model.position == "learned":
        x = x + w["embedding.positions.weight"][:length]
    for layer in range(model.num_layers):
        at = f"layers.{layer}"
        y = norm(x, f"{at}.attention_norm")
        q, k = (heads(y, f"{at}.attention.{p}_proj", True) for p in "qk")
        scores = (q @ k.transpose(-1, -2) / math.sqrt(size)).masked_fill(~visible, -torch.inf)
        mixed = scores.softmax(-1) @ heads(y, f"{at}.attention.v_proj", False)
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{at}.attention.out_proj")
        y = norm(x, f"{at}.mlp_norm")
        inner = linear(y, f"{at}.mlp.up_proj")
        if model.is_gated:
            inner = inner * F.silu(linear(y, f"{at}.mlp.gate_proj"))
        else:
            approximate = "tanh" if model.activation == "gelu_tanh" else "none"
            relu = model.activation == "relu"
            inner = inner.relu() if relu else F.gelu(inner, approximate=approximate)
        x = x + linear(inner, f"{at}.mlp.down_proj")
    logits = norm(x, "final_norm") @ w.get("head.weight", w["embedding.tokens.weight"]).T
    return F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position": 32}  # fmt: skip
VARIANTS = MODELS | {
    "gpt3_relu": GPT | {"activation": "relu", "position": "none", "tie_embeddings": False},
    "gelu": GPT | {"activation": "gelu"},
    "llama3.1": LLAMA | {"rope_scaling": SCALING, "rope_theta": 5e5},
    "wide_heads": LLAMA | {"head_dim": 12, "num_kv_heads": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_the_formulas(name: str) -> None:
    module, run = make_module(VARIANTS[name])
    module.double()
    for parameter in module.parameters():  # norms and biases away from their neutral values
        parameter.data += 0.1 * torch.sin(torch.arange(parameter.numel())).view_as(parameter)
    for block in module.layers.values():  # float32 tables would limit the comparison
        rebuild_tables(block.attention.core, run.model)
    window = make_batch(257)
    loss, gradients = loss_and_gradients(module, window)
    module.zero_grad()
    expected = reference_loss(module, run.model, window)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[key][1], parameter.grad, rtol=1e-9, atol=1e-13)


def rebuild_tables(core: Any, model: Model) -> None:
    if core.cos_S1R is not None:
        angles = _rope_angles(model, core.cos_S1R.shape[0]).unsqueeze(1)
        core.cos_S1R, core.sin_S1R = angles.cos(), angles.sin()


def test_rope_scaling_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    plain = Model.model_validate(TINY | {"head_dim": 64})
    scaled = plain.model_copy(update={"rope_scaling": RopeScaling.model_validate(SCALING)})
    old, new = _rope_angles(plain, 2)[1], _rope_angles(scaled, 2)[1]
    turns = 32 * old / (2 * math.pi)
    assert torch.equal(new[turns > 4], old[turns > 4])
    torch.testing.assert_close(new[turns < 1], old[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((new < old) & (new > old / 8))[between].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropy_is_torchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    source = (3 * torch.randn(50, 33)).to(dtype).requires_grad_()
    labels = torch.randint(33, (50,))
    loss = cross_entropy(source * 2, labels)
    loss.backward()
    gradient, source.grad = source.grad, None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = F.cross_entropy((source * 2).to(wide), labels)
    expected.backward()
    assert loss.dtype == wide
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, source.grad, rtol=tolerance, atol=tolerance / 50)


def test_cross_entropy_survives_huge_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits * 1, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 2e4
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("model", [GPT, LLAMA])
def test_recomputation_gives_the_same_bits(
    mode: str, dropout: float, model: dict[str, Any]
) -> None:
    model = model | {"dropout": dropout, "attention_dropout": dropout}
    window = make_batch(257)
    runs = [
        loss_and_gradients(make_module(model, make_layout(recompute=recompute))[0], window, 5, 9)
        for recompute in ("none", mode)
    ]
    (loss, gradients), (other_loss, other_gradients) = runs
    assert torch.equal(loss, other_loss)
    for name, (_, gradient) in gradients.items():
        assert torch.equal(gradient, other_gradients[name][1]), name


def count_saved(mode: str) -> int:
    """Bytes that autograd keeps from forward to backward, storages counted once."""
    module, _ = make_module(LLAMA, make_layout(recompute=mode, sequence_length=64))
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    window = make_batch(257, make_layout(sequence_length=64))
    context = ForwardContext(labels_BS=window[:, 1:], step=0, first_sample=0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = module(window[:, :-1], context)
    loss.backward()
    return sum(storages.values())


def test_recomputation_keeps_less() -> None:
    none, selective, full = (count_saved(mode) for mode in ("none", "selective", "full"))
    assert full < selective < none


DROPOUT = GPT | {"dropout": 0.3, "attention_dropout": 0.3}


def loss_at(module: StageModule, step: int, first_sample: int) -> float:
    return loss_and_gradients(module, make_batch(257), step, first_sample)[0].item()


def test_dropout_depends_on_step_and_sample_and_on_nothing_else() -> None:
    module, _ = make_module(DROPOUT)
    here = loss_at(module, 1, 8)
    torch.manual_seed(99)
    assert loss_at(module, 1, 8) == here
    assert len({here, loss_at(module, 2, 8), loss_at(module, 1, 10)}) == 3


def test_dropout_leaves_the_default_generator_alone() -> None:
    module, _ = make_module(DROPOUT)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loss_at(module, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_of_a_sample_does_not_depend_on_its_microbatch() -> None:
    module, _ = make_module(GPT | {"dropout": 0.3})
    window = make_batch(257)
    together = loss_and_gradients(module, window, 1, 8)[0]
    alone = [loss_and_gradients(module, window[i : i + 1], 1, 8 + i)[0] for i in range(2)]
    torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-6, atol=0)


def test_evaluation_drops_nothing() -> None:
    plain, dropped = make_module(GPT)[0], make_module(DROPOUT)[0].eval()
    assert loss_at(plain, 0, 0) == loss_at(dropped, 4, 4)


def test_dropout_rate_and_mean() -> None:
    module, _ = make_module(GPT | {"dropout": 0.25})
    context = ForwardContext(labels_BS=None, step=0, first_sample=0)
    mask = module.dropout.embedding_mask(torch.empty(8, 64, 64), context)
    assert mask.float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert not torch.equal(mask[0], mask[1])


def test_bf16_is_stored_rounded_and_computes_near_float32() -> None:
    window = make_batch(257)
    wide, narrow = make_module(LLAMA)[0], make_module(LLAMA, precision=BF16)[0]
    for name, parameter in narrow.named_parameters():
        assert torch.equal(parameter, wide.get_parameter(name).bfloat16())
    wide_loss, narrow_loss = (loss_and_gradients(m, window)[0] for m in (wide, narrow))
    assert narrow_loss.dtype == torch.float32
    torch.testing.assert_close(narrow_loss, wide_loss, rtol=1e-3, atol=0)


BF16 = {"name": "bf16", "compute": "bf16"}


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_bf16_norms_compute_in_float32(norm: str) -> None:
    module, _ = make_module(GPT | {"norm": norm}, precision=BF16)
    x = (100 + torch.randn(4, 32)).bfloat16()
    exact = make_module(GPT | {"norm": norm})[0].final_norm(x.float())
    torch.testing.assert_close(module.final_norm(x).float(), exact, rtol=2**-7, atol=2**-9)
