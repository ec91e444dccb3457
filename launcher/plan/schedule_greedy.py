"""A zero-bubble order made for given times and memory: every stage does at once what it can."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

from launcher.frozen import frozen
from launcher.plan.schedule_records import Action, Orders, Problem

NEVER = float("inf")
SLACK = 1e-9
"""Of sums of shares, which do not add up to whole numbers exactly."""


@frozen
class Policy:
    """What a stage prefers where it has a choice."""

    limits: tuple[float, ...]
    """Most that each stage holds, in activations of one microbatch of one chunk."""
    weight_share: float = 1.0
    """Share of these activations that stays for W after B."""
    patience: float = 0.0
    """Share of a W's time that a stage would rather wait for a B or an F than start the W."""
    hold: float = 0.0
    """Share of an F's time that a stage would rather wait for a B than start the F."""
    shallow_first: bool = False
    """Whether earlier parts of the model go before later ones where both are ready."""


def greedy_orders(problem: Problem, policy: Policy) -> Orders | None:
    """List scheduling; None where the memory limits bring it to a standstill."""
    stages = [_Stage(problem, policy, stage) for stage in range(problem.chain.num_stages)]
    for stage in stages:
        stage.connect(problem, stages)
    events = [(0.0, stage.index) for stage in stages]
    while events:
        now, index = heappop(events)
        stage = stages[index]
        if now != stage.wake_s:
            continue  # overtaken by an earlier event
        told = stage.act(now)
        if stage.wake_s < NEVER:
            heappush(events, (stage.wake_s, index))
        if told is not None and told.wake_s == NEVER:
            told.wake_s = now
            heappush(events, (now, told.index))
    return None if any(stage.num_left for stage in stages) else [stage.order for stage in stages]


class _Stage:
    """One stage in the middle of it."""

    def __init__(self, problem: Problem, policy: Policy, index: int) -> None:
        chain, count = problem.chain, problem.num_microbatches
        chunks = range(chain.num_chunks)
        self.index, self.limit, self.patience, self.hold = (
            index, policy.limits[index], policy.patience, policy.hold)  # fmt: skip
        self.times = [problem.times[chain.part(index, chunk)] for chunk in chunks]
        self.p2p_s = problem.p2p_s
        self.weight_share = policy.weight_share
        self.wake_s, self.held = 0.0, 0.0
        self.num_left = 3 * count * chain.num_chunks
        self.inputs: list[deque[float]] = [deque() for _ in chunks]
        self.gradients: list[deque[float]] = [deque() for _ in chunks]
        self.inputs[0].extend([0.0] * count if index == 0 else ())
        self.done_f, self.done_b = [0 for _ in chunks], [0 for _ in chunks]
        self.weights: deque[tuple[int, int]] = deque()
        self.order: list[Action] = []
        self.preferred = tuple(chunks if policy.shallow_first else reversed(chunks))
        self.last_chunk = chain.num_chunks - 1
        self.outputs: list[tuple[_Stage, deque[float]] | None] = []
        self.returns: list[tuple[_Stage, deque[float]] | None] = []

    def connect(self, problem: Problem, stages: Sequence[_Stage]) -> None:
        """Find whom each chunk hands its results to; the last part turns back by itself."""
        for chunk in range(len(self.times)):
            behind = problem.chain.neighbour(self.index, chunk, 1)
            before = problem.chain.neighbour(self.index, chunk, -1)
            self.outputs.append(
                (stages[behind[0]], stages[behind[0]].inputs[behind[1]])
                if behind
                else (self, self.gradients[chunk])
            )
            self.returns.append(
                (stages[before[0]], stages[before[0]].gradients[before[1]]) if before else None
            )

    def act(self, now: float) -> _Stage | None:
        """Do one thing, or decide what to wait for; whom it may wake up."""
        soonest = NEVER
        for chunk in self.preferred:
            queue = self.gradients[chunk]
            if queue and queue[0] < soonest:
                if queue[0] <= now:
                    return self._backward(chunk, now)
                soonest = queue[0]
        due_b = soonest
        for chunk in self.preferred:
            queue = self.inputs[chunk]
            # Earlier chunks leave room for later ones, or nothing would ever be freed.
            if (
                queue
                and queue[0] < soonest
                and self.held <= self.limit - 1 - self.last_chunk + chunk + SLACK
            ):
                if queue[0] <= now:
                    if due_b < now + self.hold * self.times[chunk].forward_s:
                        self.wake_s = due_b
                        return None
                    return self._forward(chunk, now)
                soonest = queue[0]
        if self.weights:
            microbatch, chunk = self.weights[0]
            took_s = self.times[chunk].weight_s
            if soonest >= now + self.patience * took_s:
                self.weights.popleft()
                self.held -= self.weight_share
                self._finish(Action("W", microbatch, chunk), now + took_s)
                return None
        self.wake_s = soonest
        return None

    def _forward(self, chunk: int, now: float) -> _Stage | None:
        self.inputs[chunk].popleft()
        self.held += 1
        microbatch = self.done_f[chunk]
        self.done_f[chunk] += 1
        return self._hand_over(
            Action("F", microbatch, chunk), now + self.times[chunk].forward_s, self.outputs[chunk]
        )

    def _backward(self, chunk: int, now: float) -> _Stage | None:
        self.gradients[chunk].popleft()
        microbatch = self.done_b[chunk]
        self.done_b[chunk] += 1
        self.held -= 1 - self.weight_share
        self.weights.append((microbatch, chunk))
        return self._hand_over(
            Action("B", microbatch, chunk), now + self.times[chunk].backward_s, self.returns[chunk]
        )

    def _hand_over(
        self, action: Action, end_s: float, target: tuple[_Stage, deque[float]] | None
    ) -> _Stage | None:
        self._finish(action, end_s)
        if target is None:
            return None
        stage, queue = target
        queue.append(end_s if stage is self else end_s + self.p2p_s)
        return stage

    def _finish(self, action: Action, end_s: float) -> None:
        self.order.append(action)
        self.num_left -= 1
        self.wake_s = end_s
