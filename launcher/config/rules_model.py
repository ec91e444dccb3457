"""Rules on the shape of the model alone."""

from __future__ import annotations

from launcher.config.rule import Rule, divisors
from launcher.config.schema import Run


def _head_dim(run: Run) -> str | None:
    model = run.model
    if model.head_dim is None and model.hidden_size % model.num_heads:
        return f"{model.num_heads} does not divide model.hidden_size={model.hidden_size}"
    return None


def _kv_heads(run: Run) -> str | None:
    model = run.model
    if model.num_heads % model.kv_heads:
        return f"{model.kv_heads} does not divide model.num_heads={model.num_heads}"
    return None


def _rope_even(run: Run) -> str | None:
    model = run.model
    if model.position == "rope" and model.head_size % 2:
        return f"rotary positions turn pairs, but a head is {model.head_size} wide"
    return None


def _rope_scaling(run: Run) -> str | None:
    model = run.model
    scaling = model.rope_scaling
    if scaling is None:
        return None
    if model.position != "rope":
        return f"model.position={model.position} has no rotary frequencies to stretch"
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        return (
            f"low_freq_factor={scaling.low_freq_factor} is not below "
            f"high_freq_factor={scaling.high_freq_factor}"
        )
    return None


def _byte_vocabulary(run: Run) -> str | None:
    if run.data.kind == "stdlib_text" and run.model.vocab_size < 256:
        return "data=stdlib_text yields byte tokens 0 to 255"
    return None


def _experts_per_token(run: Run) -> str | None:
    experts = run.model.experts
    if experts and experts.experts_per_token > experts.num_experts:
        return f"a token cannot visit more than model.experts.num_experts={experts.num_experts}"
    return None


def _dense_layers(run: Run) -> str | None:
    model = run.model
    if model.experts and model.experts.num_dense_layers > model.num_layers:
        return f"the model has model.num_layers={model.num_layers} blocks"
    return None


def _encoder_kind(run: Run) -> str | None:
    model = run.model
    if model.encoder and (model.experts or model.latent):
        return "its costs are known for plain attention and one MLP per block"
    return None


def _encoder_cp(run: Run) -> str | None:
    cp = run.parallelism.cp
    if run.model.encoder and cp > 1:
        return f"cp={cp} would cut input and target, which attend to each other, differently"
    return None


MODEL_RULES = (
    Rule(
        id="encoder-of-plain-blocks",
        field="model.encoder",
        says="an encoder-decoder has neither experts nor latent attention",
        why="Costs of such blocks with attention to an encoder are not known.",
        broken=_encoder_kind,
        candidates=lambda run: (None,),
        fix="model.encoder=null",
    ),
    Rule(
        id="encoder-whole-sequence",
        field="parallelism.cp",
        says="an encoder-decoder has cp=1",
        why="Its decoder attends to the whole input: a cut sequence is planned for one side.",
        broken=_encoder_cp,
        candidates=lambda run: (1,),
    ),
    Rule(
        id="experts-per-token",
        field="model.experts.experts_per_token",
        says="a token visits at most as many experts as there are",
        why="The router picks that many different ones (Shazeer et al. 2017, 1701.06538).",
        broken=_experts_per_token,
        candidates=lambda run: (run.model.experts.num_experts,) if run.model.experts else (),
    ),
    Rule(
        id="dense-layers-at-most-layers",
        field="model.experts.num_dense_layers",
        says="num_dense_layers is at most num_layers",
        why="They are the first of the model's blocks.",
        broken=_dense_layers,
        candidates=lambda run: (0, run.model.num_layers),
    ),
    Rule(
        id="heads-divide-hidden",
        field="model.num_heads",
        says="num_heads divides hidden_size, unless head_dim is given",
        why="The heads share the hidden width evenly (Vaswani et al. 2017, sec. 3.2.2).",
        broken=_head_dim,
        candidates=lambda run: divisors(run.model.hidden_size, limit=256),
    ),
    Rule(
        id="kv-heads-divide-heads",
        field="model.num_kv_heads",
        says="num_kv_heads divides num_heads",
        why="Every key/value head serves the same number of query heads (GQA, 2305.13245).",
        broken=_kv_heads,
        candidates=lambda run: divisors(run.model.num_heads),
    ),
    Rule(
        id="rope-needs-even-heads",
        field="model.head_dim",
        says="the width of a head is even under position=rope",
        why="Rotary embedding turns pairs of coordinates (RoFormer, 2104.09864, sec. 3.2).",
        broken=_rope_even,
        candidates=lambda run: (run.model.head_size + 1, 64, 128),
    ),
    Rule(
        id="rope-scaling-sound",
        field="model.rope_scaling",
        says="rope_scaling needs position=rope and low_freq_factor < high_freq_factor",
        why="The stretch blends between two wavelengths; equal ones divide by zero (Llama 3.1).",
        broken=_rope_scaling,
        candidates=lambda run: (None,),
    ),
    Rule(
        id="vocabulary-holds-bytes",
        field="model.vocab_size",
        says="data=stdlib_text needs vocab_size >= 256",
        why="A token is a byte; a smaller table would be read beyond its end.",
        broken=_byte_vocabulary,
        candidates=lambda run: (256,),
    ),
)
