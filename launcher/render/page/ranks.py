"""Where ranks sit: nodes with their devices, a map of large clusters, and how far axes reach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import ceil, sqrt

from launcher.plan.mesh import Mesh, build_mesh, expert_groups, expert_part
from launcher.plan.records import Layout, Plan
from launcher.render.page.markup import percent, table

MAX_NODES = 16
"""Nodes that are shown device by device; of larger clusters fewer, beside a map."""
NODES_BESIDE_MAP = 4
SHADES = 16
"""Colours from the first coordinate of an axis to its last."""
CELL = 10
"""Units of the map per node, gap included."""


def render_ranks(plan: Plan) -> Iterator[str]:
    """Nodes, the map where there are many, and a table of axes."""
    layout, mesh = plan.layout, build_mesh(plan.layout)
    axis = next((axis for axis in ("pp", "dp", "cp", "tp") if mesh.sizes[axis] > 1), "tp")
    shown = layout.nodes if layout.nodes <= MAX_NODES else NODES_BESIDE_MAP
    if mesh.sizes[axis] > 1:
        yield _scale(axis, mesh.sizes[axis])
    if shown < layout.nodes:
        yield f"<h3>All {layout.nodes:,} nodes</h3>" + _map(layout, mesh, axis)
        yield f"<h3>The first {shown} nodes</h3>"
    yield "<div class=nodes>"
    for node in range(shown):
        yield _node(layout, mesh, node, axis)
    yield "</div>"
    rows = [_reach(layout, mesh, axis) for axis in mesh.order if mesh.sizes[axis] > 1]
    if layout.ep > 1:
        rows.append(_row_of("ep", layout.ep, layout, expert_groups(mesh, layout.ep)))
    if rows:
        yield table(
            "How far each axis reaches, fastest-varying first",
            ("axis", "ranks", "first group", "links"), rows, "reach",
        )  # fmt: skip


def _shade(value: int, size: int) -> int:
    return value * SHADES // size if size > SHADES else value * (SHADES - 1) // max(1, size - 1)


def _scale(axis: str, size: int) -> str:
    """Which colour is which coordinate."""
    values = range(size) if size <= SHADES else [size * step // SHADES for step in range(SHADES)]
    chips = "".join(f"<i class=r{_shade(value, size)}></i>" for value in values)
    names = {"pp": "pipeline stage", "dp": "replica", "cp": "context part", "tp": "tensor part"}
    return (
        f"<p class=scale>{names[axis]} ({axis}) 0 <span class=chips-row>{chips}</span> "
        f"{size - 1:,}</p>"
    )


def _node(layout: Layout, mesh: Mesh, node: int, axis: str) -> str:
    """A node: what its ranks share in the head, what tells them apart on each device."""
    first = node * layout.gpus_per_node
    last = min(first + layout.gpus_per_node, layout.world_size) - 1
    coordinates = [
        {**mesh.coordinates(rank), "ep": expert_part(mesh, rank, layout.ep)}
        for rank in range(first, last + 1)
    ]
    axes = [axis for axis in reversed(mesh.order) if mesh.sizes[axis] > 1]
    if layout.ep > 1:
        axes.append("ep")
    shared = [axis for axis in axes if len({place[axis] for place in coordinates}) == 1]
    own = [axis for axis in axes if axis not in shared]
    common = ", ".join(f"{axis} {coordinates[0][axis]}" for axis in shared)
    devices = "".join(
        f'<li class=r{_shade(place[axis], mesh.sizes[axis])} title="{_where(place, axes)}">'
        f"<b>{first + index:,}</b>{''.join(f'<span>{name} {place[name]}</span>' for name in own)}"
        "</li>"
        for index, place in enumerate(coordinates)
    )
    return (
        f"<div class=node><h4>node {node}<span class=note>{common}</span></h4>"
        f'<ol class=devices aria-label="ranks of node {node}">{devices}</ol></div>'
    )


def _where(place: Mapping[str, int], axes: list[str]) -> str:
    return ", ".join(f"{axis} {place[axis]}" for axis in axes) or "the whole model"


def _map(layout: Layout, mesh: Mesh, axis: str) -> str:
    """A square per node, cut where its devices differ in colour; read row by row."""
    columns = ceil(sqrt(2.6 * layout.nodes))
    rows = -(-layout.nodes // columns)
    stride, size = mesh.strides()[axis], mesh.sizes[axis]
    per_node, inner = layout.gpus_per_node, CELL - 2
    paths: dict[int, list[str]] = defaultdict(list)
    for node in range(layout.nodes):
        row, column = divmod(node, columns)
        shades = [
            _shade(rank // stride % size, size)
            for rank in range(node * per_node, (node + 1) * per_node)
        ]
        start = 0
        for index in range(1, per_node + 1):
            if index == per_node or shades[index] != shades[start]:
                left = column * CELL + inner * start / per_node
                width = inner * (index - start) / per_node
                paths[shades[start]].append(f"M{left:g} {row * CELL}h{width:g}v{inner}h-{width:g}z")
                start = index
    drawn = "".join(
        f'<path class=r{shade} d="{"".join(steps)}"/>' for shade, steps in sorted(paths.items())
    )
    return (
        f'<svg class=map viewBox="0 0 {columns * CELL - 2} {rows * CELL - 2}" role=img '
        f'aria-label="{layout.nodes:,} nodes, coloured by {axis}; row by row, {columns} in a row">'
        f"{drawn}</svg>"
    )


def _reach(layout: Layout, mesh: Mesh, axis: str) -> list[str]:
    """How an axis' groups sit on nodes."""
    return _row_of(axis, mesh.sizes[axis], layout, mesh.groups(axis))


def _row_of(name: str, size: int, layout: Layout, groups: tuple[tuple[int, ...], ...]) -> list[str]:
    """A row of the table of axes; the group of rank 0 as an example."""
    group = groups[0]
    listed = ", ".join(f"{rank:,}" for rank in (group if len(group) <= 4 else group[:3]))
    if len(group) > 4:
        listed += f" … {group[-1]:,}"
    crossing = sum(
        group[0] // layout.gpus_per_node != group[-1] // layout.gpus_per_node for group in groups
    )
    if not crossing:
        links = "inside a node"
    elif crossing == len(groups):
        links = "across nodes"
    else:
        links = f"{percent(crossing, len(groups)):.0f} % of groups across nodes"
    return [name, f"{size:,}", listed, links]
