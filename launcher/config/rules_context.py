"""Rules on context parallelism: how a sequence can be cut over cp."""

from __future__ import annotations

from launcher.config.rule import Rule, divisors
from launcher.config.schema import Run


def num_chunks(run: Run) -> int:
    """Equal runs of tokens that a sequence is cut into: two per rank where they are in zig-zag."""
    cp = run.parallelism.cp
    return cp if cp == 1 or run.parallelism.cp_mode == "ulysses" else 2 * cp


def _sequence_chunks(run: Run) -> str | None:
    length, chunks = run.train.sequence_length, num_chunks(run)
    if length and length % chunks:
        return f"{length} tokens do not make {chunks} equal chunks"
    return None


def sequence_lengths(run: Run) -> list[int]:
    """The nearest below and above that fit cp, sequence parallelism and the model's positions."""
    degrees, longest = run.parallelism, run.model.max_sequence_length
    unit = num_chunks(run) * ((degrees.tp or 1) if degrees.sequence_parallel else 1)
    below = min(run.train.sequence_length or 1, longest) // unit * unit
    return [size for size in (below, below + unit) if 0 < size <= longest]


def _ulysses_heads(run: Run) -> str | None:
    cp, heads = run.parallelism.cp, run.model.num_heads // (run.parallelism.tp or 1)
    if run.parallelism.cp_mode == "ulysses" and heads % cp:
        share = "" if run.parallelism.tp in (None, 1) else f" of a tp rank ({heads})"
        return f"{cp} does not divide the heads{share} of model.num_heads={run.model.num_heads}"
    return None


def _ulysses_kv_heads(run: Run) -> str | None:
    cp, heads = run.parallelism.cp, max(1, run.model.kv_heads // (run.parallelism.tp or 1))
    if run.parallelism.cp_mode == "ulysses" and heads % cp and cp % heads:
        return f"{cp} neither divides the {heads} key/value heads of a rank nor is a multiple"
    return None


def heads_allow(run: Run, **degrees: object) -> bool:
    """Whether cp_mode can share out the heads of a tp rank, with these degrees changed."""
    parallelism = run.parallelism.model_copy(update=degrees)
    changed = run.model_copy(update={"parallelism": parallelism})
    return not any(broken(changed) for broken in (_ulysses_heads, _ulysses_kv_heads))


def _has_whole_rows(run: Run) -> bool:
    return heads_allow(run, cp_mode="ulysses")


def _cp_candidates(run: Run) -> list[int]:
    return divisors(run.model.num_heads)


def _attention_dropout(run: Run) -> str | None:
    degrees, rate = run.parallelism, run.model.attention_dropout
    if degrees.cp > 1 and degrees.cp_mode != "ulysses" and rate > 0:
        return f"model.attention_dropout={rate} needs whole rows of attention probabilities"
    return None


CONTEXT_RULES = (
    Rule(
        id="cp-divides-sequence",
        field="train.sequence_length",
        says="cp divides train.sequence_length; under cp_mode=ring and all_gather 2 x cp does",
        why="Ranks hold equally many tokens. With causal attention the i-th of cp pieces would see "
        "i times as much as the first: ring and all_gather give each rank one chunk from the front "
        "and one from the back (Llama 3, 2407.21783, sec. 3.3.2).",
        broken=_sequence_chunks,
        candidates=sequence_lengths,
    ),
    Rule(
        id="ulysses-divides-heads",
        field="parallelism.cp",
        says="with cp_mode=ulysses, cp divides the heads of a tp rank, model.num_heads / tp",
        why="Each rank attends over the whole sequence with its share of the heads (2309.14509, "
        "sec. 3.1). ring and all_gather leave heads together.",
        broken=_ulysses_heads,
        candidates=_cp_candidates,
    ),
    Rule(
        id="ulysses-fits-kv-heads",
        field="parallelism.cp",
        says="with cp_mode=ulysses, cp divides the key/value heads of a tp rank or is a multiple",
        why="A rank gets whole key/value heads, or several ranks get the same one.",
        broken=_ulysses_kv_heads,
        candidates=_cp_candidates,
    ),
    Rule(
        id="attention-dropout-needs-ulysses",
        field="parallelism.cp_mode",
        says="with cp > 1 and model.attention_dropout > 0, cp_mode is ulysses",
        why="ring and all_gather put softmax together from parts, which fused kernels return "
        "without a mask that backward could draw again.",
        broken=_attention_dropout,
        candidates=lambda run: ("ulysses",) * _has_whole_rows(run),
        fix=lambda run: "" if _has_whole_rows(run) else "model.attention_dropout=0.0",
    ),
)
