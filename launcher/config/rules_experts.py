"""Rules on how experts are dealt out, and on what tp cuts of them."""

from __future__ import annotations

from launcher.config.devices import known_dp, tp_candidates
from launcher.config.rule import Rule, divisors
from launcher.config.schema import Run


def tp_experts(run: Run) -> str | None:
    """Of columns; without ep every rank has some of every expert."""
    tp, experts = run.parallelism.tp, run.model.experts
    if not tp or not experts:
        return None
    width, shared = experts.ffn_hidden_size, experts.num_shared * experts.ffn_hidden_size
    if run.parallelism.ep == 1 and width % tp:
        return f"{tp} does not divide model.experts.ffn_hidden_size={width}"
    if shared % tp:
        return f"{tp} does not divide the {shared} columns of the shared experts"
    return None


def _ep_experts(run: Run) -> str | None:
    ep = run.parallelism.ep
    if run.model.experts is None:
        return None if ep == 1 else "the model has no experts to share out"
    number = run.model.experts.num_experts
    return f"{ep} does not divide model.experts.num_experts={number}" if number % ep else None


def _ep_replicas(run: Run) -> str | None:
    dp, ep = known_dp(run), run.parallelism.ep
    if dp is None or (dp * run.parallelism.cp) % ep == 0:
        return None
    return f"{ep} does not divide dp={dp} x cp={run.parallelism.cp}"


EXPERT_RULES = (
    Rule(
        id="tp-divides-experts",
        field="parallelism.tp",
        says="tp divides the width of shared experts and, without ep, that of every expert",
        why="Without ep each rank has columns of all experts; those of shared ones are always cut.",
        broken=tp_experts,
        candidates=tp_candidates,
    ),
    Rule(
        id="ep-divides-experts",
        field="parallelism.ep",
        says="ep divides model.experts.num_experts; without experts it is 1",
        why="Each rank of an expert group holds whole experts (GShard, 2006.16668).",
        broken=_ep_experts,
        candidates=lambda run: divisors(run.model.experts.num_experts if run.model.experts else 1),
    ),
    Rule(
        id="ep-divides-replicas",
        field="parallelism.ep",
        says="ep divides dp x cp",
        why="Experts are shared out over ranks that would otherwise hold copies of them.",
        broken=_ep_replicas,
        candidates=lambda run: divisors((known_dp(run) or 1) * run.parallelism.cp),
    ),
)
