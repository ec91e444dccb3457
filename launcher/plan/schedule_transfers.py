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

from launcher.plan.schedule_records import Action, Chain, Kind

MakeTransfer = Callable[[Kind, int, int], Action]
DIRECTIONS: tuple[tuple[Kind, int, Kind, Kind], ...] = (
    ("F", 1, "send_forward", "recv_forward"),
    ("B", -1, "send_backward", "recv_backward"),
)
"""Kind of the compute action, step to the neighbour that needs its result, send, receive."""


class _Channel:
    """What one stage sends to another in one direction, in order."""

    def __init__(self, receive: Kind) -> None:
        self.receive = receive
        self.items: list[tuple[int, int]] = []
        """(microbatch, chunk of the receiver)"""
        self.num_posted = 0
        self.posted: set[tuple[int, int]] = set()

    def post(self, item: tuple[int, int], make: MakeTransfer, actions: list[Action]) -> None:
        """Post the receive of an item, and before it those that the sender sends before it."""
        if item in self.posted:
            return
        for position in range(self.num_posted, len(self.items)):
            each = self.items[position]
            self.posted.add(each)
            actions.append(make(self.receive, *each))
            if each == item:
                self.num_posted = position + 1
                return


def add_transfers(
    chain: Chain, orders: Sequence[Sequence[Action]], make: MakeTransfer
) -> tuple[tuple[Action, ...], ...]:
    """Put a receive one compute action ahead of its user, and a send right behind its producer."""
    outgoing, incoming = _open_channels(chain)
    for order, channels in zip(orders, outgoing, strict=True):
        for action in order:
            if target := channels.get((action.kind, action.chunk)):
                target[0].items.append((action.microbatch, target[1]))
    return tuple(
        _weave(order, sends, receives, make)
        for order, sends, receives in zip(orders, outgoing, incoming, strict=True)
    )


Outgoing = dict[tuple[str, int], tuple[_Channel, int, Kind]]
"""By kind and chunk of the producer: the channel, the receiver's chunk, and the send."""
Incoming = dict[tuple[str, int], _Channel]
"""By kind and chunk of the user."""


def _open_channels(chain: Chain) -> tuple[list[Outgoing], list[Incoming]]:
    channels: dict[tuple[int, int, Kind], _Channel] = {}
    outgoing: list[Outgoing] = [{} for _ in range(chain.num_stages)]
    incoming: list[Incoming] = [{} for _ in range(chain.num_stages)]
    for kind, step, send, receive in DIRECTIONS:
        for stage in range(chain.num_stages):
            for chunk in range(chain.num_chunks):
                home = chain.neighbour(stage, chunk, step)
                if home is None or home[0] == stage:
                    continue
                channel = channels.setdefault((stage, home[0], receive), _Channel(receive))
                outgoing[stage][kind, chunk] = channel, home[1], send
                incoming[home[0]][kind, home[1]] = channel
    return outgoing, incoming


def _weave(
    order: Sequence[Action], sends: Outgoing, receives: Incoming, make: MakeTransfer
) -> tuple[Action, ...]:
    actions: list[Action] = []

    def post(user: Action) -> None:
        if channel := receives.get((user.kind, user.chunk)):
            channel.post((user.microbatch, user.chunk), make, actions)

    post(order[0])
    for position, current in enumerate(order):
        if position + 1 < len(order):
            post(order[position + 1])
        actions.append(current)
        if target := sends.get((current.kind, current.chunk)):
            actions.append(make(target[2], current.microbatch, current.chunk))
    return tuple(actions)
