"""Orders of ranks that a search tells apart: those that put some axis on other links."""

from __future__ import annotations

from launcher.plan.collectives import Links
from launcher.plan.search_cost import Coster
from launcher.plan.search_nodes import Place
from launcher.plan.search_space import Space
from launcher.plan.search_stages import Stages


class Places:
    """Of one search."""

    def __init__(self, space: Space, coster: Coster) -> None:
        self.space, self.coster = space, coster
        self._places: dict[object, list[Place]] = {}
        self._orders: dict[tuple[bool, ...], list[tuple[str, ...]]] = {}

    def of(self, stages: Stages) -> list[Place]:
        """One order of those that put every axis on the same links."""
        mesh, pp, dp, _, _ = stages
        degrees = (mesh.tp, mesh.cp, mesh.ep, dp, pp)
        if degrees not in self._places:
            found: dict[Links, tuple[str, ...]] = {}
            for order in self._orders_of(mesh.tp > 1, mesh.cp > 1, dp > 1, pp > 1):
                found.setdefault(self.coster.place(degrees, order), order)
            numbers: dict[object, int] = {}
            self._places[degrees] = [
                Place(order, links, numbers.setdefault(links[:4], len(numbers)))
                for links, order in found.items()
            ]
        return self._places[degrees]

    def _orders_of(self, *is_long: bool) -> list[tuple[str, ...]]:
        """All that differ, where these axes have more than one rank."""
        if is_long not in self._orders:
            sizes = [2 if one else 1 for one in is_long]
            self._orders[is_long] = list(self.space.orders(*sizes))
        return self._orders[is_long]
