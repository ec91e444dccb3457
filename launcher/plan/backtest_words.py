"""What words of a table say of sharding, recomputation and schedules."""

from __future__ import annotations

import re

from launcher.plan.execution import Recompute

NO = ("no", "none", "off", "false", "0", "n", "disabled", "without")
"""Ways to write that something is not used."""


YES = ("yes", "true", "on", "y", "enabled")
"""Ways to write that something is used, as its program does it by default."""

SHARDED = (*YES, "zero", "zero dp", "zero-dp", "sharded", "sharding", "group sharded")
"""Ways to write that something is sharded, without a word on what."""


def says_fsdp(text: str) -> bool:
    """`fsdp2(zero3)`, `FSDP: yes`, `HSDP 4x8`, `FULL_SHARD`; not `no fsdp`, `fsdp=0`."""
    text = text.lower()
    off = rf"(?:non?|without)[- ]?fsdp|fsdp[ =:]+(?:{'|'.join(NO)})(?![a-z0-9])"
    return re.search(FSDP_NAMES, text) is not None and not re.search(off, text)


FSDP_NAMES = r"[fh]sdp|(?:full|hybrid)_shard|shard_grad_op|dp[-_ ]?shard"
"""PyTorch's FSDP, its strategies and torchtitan's degree of it."""


def zero_stage(text: str, pp: int) -> int:
    """Of `zero1(dist-opt)`, `ZeRO stage 2`, `fsdp2(zero3)`, `fsdp`, `SHARD_GRAD_OP`, `ddp`, `0`."""
    if re.search(r"(?<![a-z])mics(?![a-z])|zero\+\+|zero[- ]?infinity", text):
        return 3
    if found := re.search(rf"(?:zero|stage|sharding|^z|^){STAGE}", text):
        return int(found[1])
    if found := re.search(r"(?<![a-z])p?_?os(?![a-z])( ?\+ ?g)?( ?\+ ?p)?", text):
        return 1 + sum(part is not None for part in found.groups())  # ZeRO's own P_os+g+p
    if found := re.search(r"optim\w*[-_+ ]+grad\w*?s?([-_+ ]+param\w*)?(?![a-z])", text):
        return 3 if found[1] else 2  # Megatron-FSDP's
    if re.search(r"shard_grad_op|grad_op|zero[- ]?offload", text):
        return 2
    if re.search(r"no_shard|\bddp\b|dp[-_ ]?shard[ =:]*1(?!\d)", text):
        return 0
    if says_fsdp(text) or re.search(r"hybrid|fully?[- _]?shard|gemini", text):
        keeps = re.search(KEEPS_GATHERED, text) is not None
        is_said = "reshard" in text and not keeps
        # inside a pipeline weights stay gathered for the step, unless the row says that they do not
        return 3 if (pp == 1 or is_said) and not keeps else 2
    return 1 if re.search(r"dist|optim|weight[- ]update", text) else 0


STAGE = r"[-_ ]*(?:stage)?[-_ =:]*([0-3])(?![\dx])"

KEEPS_GATHERED = r"(?:no|not|without|never)[- _]?reshard|reshard\w*[ =:]+(?:false|never|no|off|0)\b"
"""FSDP's weights are gathered once per step, as under ZeRO-2."""


def named_stage(source: str) -> int | None:
    """Of a source that names one: `DeepSpeed ZeRO-3`, `ZeRO++`, `ZeRO-Infinity`."""
    found = re.search(r"zero[-_ ]?(?:stage[-_ ]?)?(?:[1-3](?!\d)|\+\+|infinity|offload)",
                      source.lower())  # fmt: skip
    return zero_stage(found[0], 1) if found else None


def read_recompute(
    text: str, num_layers: int, pp: int = 1, vpp: int = 1
) -> tuple[Recompute, float]:
    """`full`, `selective(op SAC)`, `full on 5 layers`, `selective(every 2nd layer)`, `none`.

    Stages and their chunks are for layers that are counted in each.
    """
    text = text.lower().strip()
    words = re.findall(r"[a-z]+", text)
    is_off = words[:1] in ([word] for word in NO) or re.fullmatch(SAID_OFF, text) is not None
    if not text or is_off or re.search(r"(?:no|without) (?:activation )?(?:re-?comp|checkp)", text):
        return "none", 1.0
    if (share := _share(text, num_layers, pp, vpp)) is not None:
        return "full", min(1.0, share)
    if {"op", "sac", "ops", "operators"} & set(words):
        return "operators", 1.0
    if re.search(r"(?:attn|attention)\W+(?:and )?mlp", text) and not re.search(r"\bsel", text):
        return "full", 1.0
    if re.match(r"attn|attention|core", text) or re.search(r"\bsel", text):
        return "selective", 1.0
    # Megatron-Core's module `mlp` is that of dense layers, of which models with MLA have few.
    costly = r"moe(?!_?act)|full|all|block" if "mla" in text else r"mlp|moe(?!_?act)|full|all|block"
    if re.search(CHEAP, text) and not re.search(costly, text):
        return "selective", 1.0
    return "full", 1.0


SAID_OFF = rf"(?:[a-z]+[- ]?){{0,3}}[ =:]*(?<![a-z])(?:{'|'.join(NO)})"
"""`off`, `AC off`, `recompute: none`, `activation checkpointing = false`."""

CHEAP = r"norm|_?act(?![a-z])|up_proj|swiglu|gelu|softmax|minimal|\bdots\b|save_dot"
"""Modules of Megatron-Core whose recomputation takes about what that of an attention core does;
policies of JAX that keep what matrix products made do too."""


def _share(text: str, num_layers: int, pp: int, vpp: int) -> float | None:
    """Of the layers that recompute everything, where the words say how many."""
    if re.search(r"every (?:other|second)", text):
        return 0.5
    # torchtitan writes `selective 2` for every second layer.
    option = r"sel\w*(?: ac)?[ _(:=,-]*(?:layers?[ _=:-]*)?(\d+)\)?$"
    if found := re.search(rf"every (\d+)|{option}", text):
        return 1 / max(1, int(found[1] or found[2]))
    if found := re.search(r"(\d+(?:\.\d+)?) ?%", text):
        return float(found[1]) / 100
    if "uniform" in text:  # all of them, in groups of so many
        return 1.0
    if re.search(r"\bhalf\b", text):
        return 0.5
    if found := re.search(r"(\d+) ?(?:/|of|out of) ?(\d+) (?:layers|blocks)", text):
        return int(found[1]) / max(1, int(found[2]))
    # Megatron's method `block` counts layers of each chunk of the pipeline.
    if found := re.search(r"\bblock\b\D{0,24}?(\d+)", text):
        return int(found[1]) * pp * vpp / num_layers
    if found := re.search(r"(\d+) (?:layers|blocks)", text):
        stages = pp if re.search(r"(?:per|each|every)[- ](?:\w+ )?(?:stage|rank)", text) else 1
        return int(found[1]) * stages / num_layers
    return None


SCHEDULE_WORDS = (
    (r"zb-?v", "zb_v"),
    (r"zb-?h1", "zb_h1"),
    (r"zb-?h2", "zb_h2"),
    (r"zb-?1p", "zb_1p"),
    (r"zb-?2p", "zb_2p"),
    (r"dualpipe(?:-?v)?", "dualpipev"),
    (r"gpipe", "gpipe"),
    (r"1f1b-?i", "interleaved_1f1b"),
    (r"(?<!non-)interleaved(?:-?1f1b|-?zb)?", "interleaved_1f1b"),
    (r"1f1b(?!-?i)", "1f1b"),
)
"""Names of schedules in the id or the notes of a row; else 1F1B, interleaved where vpp > 1."""


def find_schedule(row: dict[str, str], vpp: int) -> str:
    """A name of `SCHEDULES`: that in the id, else the first one in the notes."""
    plain = "interleaved_1f1b" if vpp > 1 else "1f1b"
    name = row_schedule(row)
    return plain if name in (None, "1f1b", "interleaved_1f1b") else str(name)


def named_schedule(text: str) -> str | None:
    """The schedule that is named first."""
    words = re.sub(r"[_ ]", "-", text.lower())
    words = re.sub(r"zero-?bubble", "zb", words.replace("zbvzerobubble", "zb-v"))
    hits = [
        (found.start(), name)
        for pattern, name in SCHEDULE_WORDS
        if (found := re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", words))
    ]
    if not hits and re.search(r"zb(?:-schedule)?(?![a-z0-9-])", words):
        return "zb_h1"  # without more words: the one that needs no more memory than 1F1B
    return min(hits)[1] if hits else None


CHUNKS = r"(?<![a-z])(?:vpp?|virtual[- _]?(?:pp|pipeline|stages?))[ =:_-]*(\d+)"


def stated_chunks(row: dict[str, str]) -> int | None:
    """Chunks per stage of a row whose cell says none: `vpp=4` in its id or its notes."""
    found = re.search(CHUNKS, f"{row['id']} {row['notes']}".lower())
    return int(found[1]) if found else None


def row_schedule(row: dict[str, str]) -> str | None:
    """The schedule named in the id, else the first one in the notes; a bare `zb` in the id (of a
    source's name, say) only where the notes name none.
    """
    notes = re.sub(NO_SCHEDULE, "", row["notes"].lower())
    return named_schedule(f"{row['id']}; {notes}")


NO_SCHEDULE = (
    r"\b(?:no|not|without|w/o) (?:an? |the )?"
    r"(?:zero[-_ ]?bubble|zb|interleav|dualpipe|gpipe|1f1b|virtual)[-\w]*"
)
