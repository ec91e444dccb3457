"""The model of a row: dimensions that it publishes, the rest from conf/model or from its size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import product
from typing import Any

from launcher.config.schema import Experts, Model
from launcher.plan.backtest_cells import BadRow, Unsupported, read_integer, read_number
from launcher.plan.backtest_programs import own_words
from launcher.plan.costs import count_parameters

HEAD_DIM, VOCABULARY = 128, 50304
"""Taken where a row of an unknown model publishes no heads or no vocabulary."""


def read_model(cells: Mapping[str, str], models: Mapping[str, Model], assumed: list[str]) -> Model:
    """Dimensions of the row; of the MLP's and the head's kinds those whose size is published."""
    if re.search(NO_TRANSFORMERS, cells["model"].lower()):
        raise Unsupported(f"model={cells['model']}: not a language model of transformer blocks")
    known = known_model(cells["model"], models)
    if known and (known.experts or known.latent) and _differs(cells, known):
        known = None  # a smaller one of the family, whose experts are others
    if known and _is_of_another_size(cells["model"], known):
        known = None
    cells = _completed(cells, known, assumed)
    if missing := [column for column in ("layers", "hidden", "seq") if not cells[column]]:
        raise Unsupported(f"not published: {', '.join(missing)}")
    heads, hidden = read_integer(cells, "heads", 1), read_integer(cells, "hidden", 1)
    common: dict[str, Any] = {
        "name": cells["model"] or cells["id"],
        "num_layers": read_integer(cells, "layers", 1),
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": read_integer(cells, "kv_heads", heads),
        "ffn_hidden_size": read_integer(cells, "ffn", 4 * hidden),
        "vocab_size": read_integer(cells, "vocab", 1),
        "max_sequence_length": read_integer(cells, "seq", 1),
    }
    if not cells["kv_heads"] and known is None:
        assumed.append(f"kv_heads={common['num_kv_heads']}, as many as heads")
    if not cells["ffn"]:
        assumed.append(f"ffn={common['ffn_hidden_size']}, four times hidden")
    if heads % common["num_kv_heads"]:
        raise BadRow(f"kv_heads={cells['kv_heads']}: does not divide heads={heads}")
    if re.search(ENCODER_DECODER, f"{cells['model']} {own_words(cells['notes'])}".lower()):
        return _encoder_decoder(common, known, cells, assumed)
    if hidden % heads and not (known and (known.head_dim or known.latent)):
        raise BadRow(f"hidden={hidden}: not a multiple of heads={heads}")
    is_kin = known and known.hidden_size == hidden and known.head_dim
    if known and (known.experts or known.latent or is_kin):
        model = known.model_copy(update=common | _changed_experts(known, cells))
        return _with_size_named(model, cells, assumed)
    experts = _stated_experts(cells, common["ffn_hidden_size"], assumed)
    if experts is None and _is_mixture(cells, known):
        experts = _experts_by_size(cells, common, assumed)
    if experts:
        model = Model.model_validate(common | LLAMA | {"experts": experts})
        return _with_size_named(model, cells, assumed)
    return _dense(common, known, cells, assumed)


NO_TRANSFORMERS = (
    r"(?<![a-z])(?:mamba|jamba|zamba|rwkv|hyena|retnet|ssm|nemotron-?h|vit|dit|swin|unet|clip|resnet"
    r"|diffusion|flux|dlrm|whisper|llava)(?![a-z])"
)
"""Models whose blocks are others, or that read something other than tokens."""


def _is_of_another_size(name: str, known: Model) -> bool:
    """`DeepSeek-V3-16B`; what each expert or token has, as in `8x7B` and `17B-16E`, is not all."""
    words = name.lower()
    if known.experts is None or re.search(r"-\d+e(?![a-z])", words):
        return False
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])", words)
    size_b = count_parameters(known) / 1e9
    return found is not None and abs(math.log(float(found[1]) / size_b)) > math.log(MIXTURE)


def _differs(cells: Mapping[str, str], known: Model) -> bool:
    return bool(cells["hidden"]) and read_integer(cells, "hidden", 1) != known.hidden_size


def known_model(name: str, models: Mapping[str, Model]) -> Model | None:
    """A model of conf/model whose name this one has in it, `_`, `-`, `.` and minor versions aside.

    `meta-llama/Llama-3.1-70B-L12` is llama3_70b, and `GPT-1.8B` is not gpt_18b.
    """
    key = _known_key(name.lower(), tuple(models))
    return None if key is None else models[key]


@lru_cache(maxsize=1024)
def _known_key(name: str, keys: tuple[str, ...]) -> str | None:
    plain = re.sub(r"(llama|qwen)[-_ ]?(\d)\.\d", r"\1\2", name).rsplit("/", 1)[-1]
    plain = re.sub(r"^meta[-_ ](?=llama)", "", plain)
    plain = re.sub(r"^llama[-_ ]?(?=(?:7|13)b)", "llama2_", plain)  # the same dimensions
    plain = re.sub(r"^gpt[-_ ]?(?=175b)", "gpt3_", plain)
    return max((key for key in keys if re.match(_pattern(key), plain)), key=len, default=None)


def _pattern(key: str) -> str:
    """Of names that mean it: anything may stand between its words and numbers, not inside them."""
    parts = re.findall(r"[a-z]+|[\d.]+", key)
    return r"[^a-z0-9]*".join(part.replace(".", "[._p]") for part in parts) + r"(?!\d)"


def _completed(cells: Mapping[str, str], known: Model | None, assumed: list[str]) -> dict[str, str]:
    """Cells that are empty as conf/model has them, or at a default."""
    filled = dict(cells)
    facts: dict[str, Any] = {}
    if known:
        facts = {
            "layers": known.num_layers, "hidden": known.hidden_size, "heads": known.num_heads,
            "kv_heads": known.kv_heads, "ffn": known.ffn_hidden_size, "vocab": known.vocab_size,
        }  # fmt: skip
    if known and cells["hidden"] and read_integer(cells, "hidden", 1) != known.hidden_size:
        facts = {"vocab": known.vocab_size}  # another width: nothing else is the same
    if known and cells["heads"] and read_integer(cells, "heads", 1) != known.num_heads:
        facts.pop("kv_heads", None)
    for column, value in facts.items():
        if not filled[column]:
            filled[column] = str(value)
            assumed.append(f"{column}={value}, as {known.name if known else ''}")
    if not filled["heads"] and filled["hidden"]:
        heads = max(1, read_integer(filled, "hidden", 1) // HEAD_DIM)
        filled["heads"] = str(heads)
        assumed.append(f"heads={heads}, {HEAD_DIM} wide each")
    if not filled["vocab"]:
        filled["vocab"] = str(VOCABULARY)
        assumed.append(f"vocab={VOCABULARY}")
    return filled


def _changed_experts(known: Model, cells: Mapping[str, str]) -> dict[str, Any]:
    """`1 dense + 3 MoE layers`, `16 experts` of a model that was cut down."""
    if known.experts is None:
        return {}
    said = _said_of_experts(cells["notes"])
    if dense := re.search(r"(\d+) dense \+ \d+ moe", cells["notes"].lower()):
        said["num_dense_layers"] = int(dense[1])
    number = said.get("num_experts", known.experts.num_experts)
    if number < said.get("experts_per_token", known.experts.experts_per_token):
        said["experts_per_token"] = number
    return {"experts": known.experts.model_copy(update=said)}


def _said_of_experts(text: str) -> dict[str, int]:
    """`64 experts, top-6, expert ffn 1408, 2 shared` or `shared expert ffn 2816`."""
    words = text.lower()
    patterns = {
        "num_experts": r"(?<!\d)(\d+)\s*(?:routed )?experts(?! per| active| are active)"
        r"|(?<!shared )experts ?[=:] ?(\d+)",
        "experts_per_token": r"top[-_ ]?(?:k ?[=:] ?)?(\d+)"
        r"|(\d+) (?:active )?(?:experts )?per token",
        "ffn_hidden_size": r"(?<!shared )(?<!shared-)(?:expert|moe)[-_ ]ffn[-_a-z ]*[=: ] ?(\d+)",
        "num_shared": r"(\d+) shared(?![- ]expert[-_ ]ffn)",
    }
    found = {name: re.search(pattern, words) for name, pattern in patterns.items()}
    said = {name: int(next(filter(None, hit.groups()))) for name, hit in found.items() if hit}
    if step := re.search(EXPERTS_EVERY, words):
        said["every"] = int(step[1]) if step[1] else 2
    if said.get("num_experts", 0) > MOST_EXPERTS:
        raise BadRow(f"notes: {said['num_experts']} experts are more than any model has")
    shared = re.search(r"shared[- ]expert[-_ ]ffn[-_a-z ]*[=: ] ?(\d+)", words)
    if shared and "ffn_hidden_size" in said:
        said["num_shared"] = round(int(shared[1]) / said["ffn_hidden_size"])
    return said


EXPERTS_EVERY = (
    r"(?:moe[-_ ]layer[-_ ]freq\w*|interleave_moe_layer_step|moe step)[=: ]*(\d+)"
    r"|(?:moe|experts)(?:(?!window|recomp|attention|checkp)[^.;]){0,40}"
    r" (?:every (?:other|second)|alternat(?:e|ing)) (?:layer|block)"
)
"""Of the blocks of a mixture, every so many has experts."""


def _stated_experts(cells: Mapping[str, str], ffn: int, assumed: list[str]) -> Experts | None:
    """By the notes, or `8x7b`; two per token where not stated."""
    named = re.search(r"\b(\d+)x\d+b", cells["model"].lower())
    width = f"; expert ffn {ffn}"  # comes last: what the notes say goes first
    said = _said_of_experts(f"{cells['model']} {cells['notes']}{width}")
    number = said.get("num_experts", int(named[1]) if named else 0)
    if number < 2:
        return None
    if "experts_per_token" not in said:
        assumed.append("2 experts per token")
    top = min(number, said.get("experts_per_token", 2))
    return Experts.model_validate(
        {"num_shared": 0} | said | {"num_experts": number, "experts_per_token": top}
    )


def _is_mixture(cells: Mapping[str, str], known: Model | None) -> bool:
    """By its name, or by experts that ranks share out."""
    named = re.search(r"moe|mixtral|-a\d+b|deepseek", cells["model"].lower()) is not None
    return named or (known is None and read_integer(cells, "ep", 1) > 1)


def _experts_by_size(
    cells: Mapping[str, str], common: Mapping[str, Any], assumed: list[str]
) -> Experts:
    """As many as make up the parameters, in every layer, two per token."""
    ep, params_b = read_integer(cells, "ep", 1), read_number(cells, "params_b")

    def make(number: int) -> Experts:
        return Experts(num_experts=number, experts_per_token=2, num_shared=0,
                       ffn_hidden_size=common["ffn_hidden_size"])  # fmt: skip

    def size_b(number: int) -> float:
        model = Model.model_validate({**common, **LLAMA, "experts": make(number)})
        return count_parameters(model) / 1e9

    least = max(2, ep)
    if params_b is not None:
        each = (size_b(2 * least) - size_b(least)) / least
        number = least + ep * round((params_b - size_b(least)) / each / ep)
        is_usual = least <= number <= MOST_EXPERTS and (number == 2 or number % 4 == 0)
        if is_usual and abs(size_b(number) / params_b - 1) < SIZE_ERROR:
            assumed.append(f"{number} experts, two per token")
            return make(number)
    raise Unsupported(f"experts of {cells['model']} are neither in the table nor in conf/model")


MOST_EXPERTS = 4096
"""Of a block; a size that needs more is a mistake."""

SIZE_ERROR = 0.05
"""By which the parameters of a guessed mixture may miss what is published."""

LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "position": "rope"}


def _dense(
    common: dict[str, Any], known: Model | None, cells: Mapping[str, str], assumed: list[str]
) -> Model:
    """Without experts, unless its size says that it has some."""
    params_b = read_number(cells, "params_b")
    model = _fit_kind(common, params_b)
    if params_b and not known and params_b > MIXTURE * count_parameters(model) / 1e9:
        with suppress(Unsupported):
            experts = _experts_by_size(cells, common, assumed)
            return Model.model_validate(common | LLAMA | {"experts": experts})
    return _with_size_named(model, cells, assumed)


def _with_size_named(model: Model, cells: Mapping[str, str], assumed: list[str]) -> Model:
    """The model; where its dimensions make another size than is published, `assumed` says so."""
    params_b, size_b = read_number(cells, "params_b"), count_parameters(model) / 1e9
    if params_b and abs(math.log(params_b / size_b)) >= math.log(SAID_OTHERWISE):
        assumed.append(f"{size_b:.3g} billion parameters by its dimensions, not {params_b:g}")
    return model


SAID_OTHERWISE = 1.15
"""Parameters over those of these dimensions, from which `assumed` names both."""

MIXTURE = 1.6
"""Parameters over those of a dense model of these dimensions, above which there are experts."""

ENCODER_DECODER = (
    r"(?<![a-z0-9])(?:m|by|flan-?|long)?t5(?![a-z0-9])|(?<![a-z])ul2(?![a-z])|bart(?![a-z])"
    r"|encoder[- ]decoder"
)
"""Models that have both sides."""


def _encoder_decoder(
    common: dict[str, Any], known: Model | None, cells: Mapping[str, str], assumed: list[str]
) -> Model:
    """Layers of each side or of both, and widths of heads, whichever come nearest to its size."""
    layers, length = common["num_layers"], common["max_sequence_length"]
    stated = re.search(r"(?:target|decoder)[-_ ](?:seq|len)\w*[=: ]+(\d+)", cells["notes"])
    if known and known.encoder and known.hidden_size == common["hidden_size"]:
        target = int(stated[1]) if stated else known.encoder.decoder_length
        encoder = known.encoder.model_copy(update={"decoder_length": target})
        depth = {"num_layers": known.num_layers} if layers == 2 * known.num_layers else {}
        return known.model_copy(update=common | depth | {"encoder": encoder})
    plain = {"norm": "rmsnorm", "activation": "relu", "position": "none"}
    gated = plain | {"activation": "swiglu"}
    kinds = (plain | {"tie_embeddings": True}, gated, gated | {"tie_embeddings": True})
    sides = (layers, layers // 2) if layers % 2 == 0 else (layers,)
    widths = {common["hidden_size"] // common["num_heads"] or 1, 64, 128}
    target = int(stated[1]) if stated else None
    found = [
        Model.model_validate(
            common | kind | {"num_layers": side, "head_dim": width}
            | {"encoder": {"num_layers": side, "decoder_length": target}}
        )
        for side, kind, width in product(sides, kinds, sorted(widths))
    ]  # fmt: skip
    params_b = read_number(cells, "params_b")
    if params_b is None:
        assumed.append(f"layers={layers} on each side, {found[0].head_size} per head")
        return found[0]
    if stated is None:
        assumed.append(f"targets of {length} tokens")
    return min(found, key=lambda model: abs(count_parameters(model) / 1e9 - params_b))


def _fit_kind(common: dict[str, Any], params_b: float | None) -> Model:
    gpt = {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
    plain = {"norm": "rmsnorm", "activation": "relu", "position": "rope"}
    kinds: list[dict[str, Any]] = [
        gpt | {"tie_embeddings": True}, LLAMA, LLAMA | {"tie_embeddings": True}, plain,
    ]  # fmt: skip
    models = [Model.model_validate(common | kind) for kind in kinds]
    if params_b is None:
        return models[0] if common["ffn_hidden_size"] == 4 * common["hidden_size"] else models[1]
    return min(models, key=lambda model: abs(count_parameters(model) / 1e9 - params_b))
