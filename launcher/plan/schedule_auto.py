"""Zero-bubble orders for given times and a memory limit: the best of a few candidates.

arXiv:2401.10241 (sec. 3) solves this with heuristics and an integer programme of minutes. Here
list scheduling is run with a few policies, on at most a few microbatches per stage because the
rest repeats itself; the closed forms compete as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product

from launcher.plan.schedule_clock import Durations, walk
from launcher.plan.schedule_greedy import Policy, greedy_orders
from launcher.plan.schedule_orders import zb_h1, zb_h2
from launcher.plan.schedule_records import Action, Orders, Problem, ScheduleError

HOLDS = (0.0, 0.05, 0.14, 0.2, 0.28, 0.5)
PATIENCES = (0.0, 1.0)
"""Tried together; more of them gain less than 0.2 points of bubble on the published profiles."""
TRIAL_MICROBATCHES_PER_STAGE = 3


def auto_orders(problem: Problem, depth: int, weight_share: float) -> Orders:
    """The order with the shortest step that holds at most depth x num_stages microbatches."""
    num_stages, count = problem.chain.num_stages, problem.num_microbatches
    limits = tuple([float(depth * num_stages)] * num_stages)
    trial = replace(problem, num_microbatches=min(count, TRIAL_MICROBATCHES_PER_STAGE * num_stages))
    policies = [
        Policy(limits=limits, weight_share=weight_share, hold=hold, patience=patience)
        for hold, patience in product(HOLDS, PATIENCES)
    ]
    ranked = sorted(policies, key=lambda policy: _cost(trial, greedy_orders(trial, policy)))
    candidates = [greedy_orders(problem, ranked[0])]
    candidates += [_closed_form(problem, form) for form in (zb_h1, zb_h2)[:depth]]
    best = min(candidates, key=lambda orders: _cost(problem, orders))
    assert best is not None
    return best


def _closed_form(problem: Problem, form: Callable[..., list[Action]]) -> Orders:
    action, num_stages = cache(Action), problem.chain.num_stages
    return [
        form(action, stage, num_stages, problem.num_microbatches) for stage in range(num_stages)
    ]


def _cost(problem: Problem, orders: Orders | None) -> float:
    """Half the step until its last stage ends, half the longest time that any stage takes.

    The first is what a step costs where all stages meet at its end (to clip the gradient norm),
    the second where a stage may go on to its next step, as in the paper.
    """
    if orders is None:
        return float("inf")
    durations = Durations(times=problem.times, p2p_s=problem.p2p_s)
    try:
        timing = walk(problem.chain, problem.num_microbatches, orders, durations, False)
    except ScheduleError:
        return float("inf")
    return timing.makespan_s + timing.longest_stage_s
