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
from launcher.plan.schedule_greedy import NEVER, Policy, greedy_orders
from launcher.plan.schedule_orders import zb_h1, zb_h2
from launcher.plan.schedule_records import Action, Orders, Problem, ScheduleError

HOLDS = (0.0, 0.05, 0.14, 0.2, 0.28, 0.5)
PATIENCES = (0.0, 1.0)
"""Tried together; more of them gain less than 0.2 points of bubble on the published profiles."""
TRIAL_MICROBATCHES_PER_STAGE = 3


def auto_orders(problem: Problem, depth: int, weight_share: float) -> Orders:
    """The best order found that holds at most depth x num_stages microbatches.

    Its step is never longer than the closed form's of that memory.
    """
    num_stages, count = problem.chain.num_stages, problem.num_microbatches
    limits = tuple([float(depth * num_stages)] * num_stages)
    trial = replace(problem, num_microbatches=min(count, TRIAL_MICROBATCHES_PER_STAGE * num_stages))
    policies = [
        Policy(limits=limits, weight_share=weight_share, hold=hold, patience=patience)
        for hold, patience in product(HOLDS, PATIENCES)
    ]
    best = min(policies, key=lambda policy: sum(_costs(trial, greedy_orders(trial, policy))))
    forms = [_closed_form(problem, form) for form in (zb_h1, zb_h2)[:depth]]
    known = [(_costs(problem, orders), orders) for orders in forms]
    longest = min(costs[0] for costs, _ in known)
    made = greedy_orders(problem, best)
    costs = _costs(problem, made)
    if made is not None and costs[0] <= longest * (1 + 1e-9):
        known.append((costs, made))
    return min(known, key=lambda pair: sum(pair[0]))[1]


def _closed_form(problem: Problem, form: Callable[..., list[Action]]) -> Orders:
    action, num_stages = cache(Action), problem.chain.num_stages
    return [
        form(action, stage, num_stages, problem.num_microbatches) for stage in range(num_stages)
    ]


def _costs(problem: Problem, orders: Orders | None) -> tuple[float, float]:
    """Time until the last stage ends, and the longest that any stage takes by itself.

    The first is what a step costs where all stages meet at its end (to clip the gradient norm),
    the second where a stage may go on to its next step, as in the paper.
    """
    if orders is None:
        return NEVER, NEVER
    durations = Durations(times=problem.times, p2p_s=problem.p2p_s)
    try:
        timing = walk(problem.chain, problem.num_microbatches, orders, durations, False)
    except ScheduleError:
        return NEVER, NEVER
    return timing.makespan_s, timing.longest_stage_s
