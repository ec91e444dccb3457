"""Where the sends and receives stand between the compute actions of a schedule.

Contract of the communication actions:
- a `recv_*` action posts a non-blocking receive; the compute action of the same microbatch and
  chunk waits for it. Receives are posted one compute action early, so that the transfer hides
  behind it;
- a `send_*` action starts a non-blocking send of what the compute action before it produced;
- a part whose neighbour in the model sits on the same stage hands over without any transfer;
- from one stage to another, activations are one first-in-first-out channel and gradients another:
  a receiver posts its receives in the order of the sends. A transport that runs the transfers of a
  pair strictly in the order of their posting (one NCCL communicator does) needs one communicator
  per channel: a stage posts the receive of a gradient before it sends the activation that its
  neighbour's gradient waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from launcher.plan.schedule_records import COMPUTE, Action, Chain, Kind, Orders, Schedule

MakeTransfer = Callable[[Kind, int, int], Action]
DIRECTIONS: tuple[tuple[Kind, int, Kind, Kind], ...] = (
    ("F", 1, "send_forward", "recv_forward"),
    ("B", -1, "send_backward", "recv_backward"),
)
"""Kind of the compute action, step to the neighbour that needs its result, send, receive."""


class _Channel:
    """What one stage sends to another in one direction, in order."""

    def __init__(self) -> None:
        self.receives: list[Action] = []
        """In the order of the sends."""
        self.num_posted = 0
        self.ahead: set[tuple[int, int]] = set()
        """Posted before their turn, because the sender sends them before what was needed."""

    def post(self, user: Action, actions: list[Action]) -> None:
        """Post the receive for a user, and before it those of what the sender sends before it."""
        microbatch, chunk = user.microbatch, user.chunk
        if self.ahead and (microbatch, chunk) in self.ahead:
            self.ahead.remove((microbatch, chunk))
            return
        for position in range(self.num_posted, len(self.receives)):
            receive = self.receives[position]
            actions.append(receive)
            if receive.microbatch == microbatch and receive.chunk == chunk:
                self.num_posted = position + 1
                return
            self.ahead.add((receive.microbatch, receive.chunk))


def finish_schedule(
    name: str,
    chain: Chain,
    num_microbatches: int,
    compute: Orders,
    action: MakeTransfer = Action,
) -> Schedule:
    """Compute orders with their transfers."""
    return Schedule(
        name=name,
        num_stages=chain.num_stages,
        num_microbatches=num_microbatches,
        ranks=add_transfers(chain, compute, action),
        num_chunks=chain.num_chunks,
        placement=chain.placement,
    )


def add_transfers(
    chain: Chain, orders: Sequence[Sequence[Action]], make: MakeTransfer
) -> tuple[tuple[Action, ...], ...]:
    """Put a receive one compute action ahead of its user, and a send right behind its producer.

    The orders must be complete (`check_orders`).
    """
    outgoing, incoming = _open_channels(chain)
    for order, table in zip(orders, outgoing, strict=True):
        for kind, microbatch, chunk in order:
            if target := table[kind][chunk]:
                channel, there, receive, _ = target
                channel.receives.append(make(receive, microbatch, there))
    return tuple(
        _weave(order, sends, receives, make)
        for order, sends, receives in zip(orders, outgoing, incoming, strict=True)
    )


Outgoing = dict[str, list[tuple[_Channel, int, Kind, Kind] | None]]
"""By kind and chunk of the producer: the channel, the receiver's chunk, receive and send."""
Incoming = dict[str, list[_Channel | None]]
"""By kind and chunk of the user."""


def _open_channels(chain: Chain) -> tuple[list[Outgoing], list[Incoming]]:
    channels: dict[tuple[int, int, Kind], _Channel] = {}
    nothing: list[None] = [None] * chain.num_chunks
    outgoing: list[Outgoing] = [{k: [*nothing] for k in COMPUTE} for _ in range(chain.num_stages)]
    incoming: list[Incoming] = [{k: [*nothing] for k in COMPUTE} for _ in range(chain.num_stages)]
    for kind, step, send, receive in DIRECTIONS:
        for stage in range(chain.num_stages):
            for chunk in range(chain.num_chunks):
                home = chain.neighbour(stage, chunk, step)
                if home is None or home[0] == stage:
                    continue
                channel = channels.setdefault((stage, home[0], receive), _Channel())
                outgoing[stage][kind][chunk] = channel, home[1], receive, send
                incoming[home[0]][kind][home[1]] = channel
    return outgoing, incoming


def _weave(
    order: Sequence[Action], sends: Outgoing, receives: Incoming, make: MakeTransfer
) -> tuple[Action, ...]:
    actions: list[Action] = []

    def post(user: Action) -> None:
        if channel := receives[user.kind][user.chunk]:
            channel.post(user, actions)

    post(order[0])
    for current, following in zip_longest(order, order[1:]):
        if following is not None:
            post(following)
        actions.append(current)
        kind, microbatch, chunk = current
        if target := sends[kind][chunk]:
            actions.append(make(target[3], microbatch, chunk))
    return tuple(actions)
