"""Flat ranges as boxes, and where boxes meet."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from launcher.checkpoint.boxes import Box, flat_range_boxes, intersect, whole

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(shapes)
    size = int(np.prod(shape))
    start = draw(st.integers(0, size))
    return shape, start, draw(st.integers(start, size))


@given(ranges())
def test_the_boxes_of_a_flat_range_hold_its_elements_in_order(case):
    shape, start, stop = case
    values = np.arange(int(np.prod(shape))).reshape(shape)
    boxes = list(flat_range_boxes(shape, start, stop))
    held = [element for box in boxes for element in values[box.slices()].ravel()]
    assert held == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(shapes, st.data())
def test_an_intersection_holds_what_both_hold(shape, data):
    def draw_box() -> Box:
        offsets = tuple(data.draw(st.integers(0, extent - 1)) for extent in shape)
        sizes = tuple(data.draw(st.integers(1, n - o)) for n, o in zip(shape, offsets, strict=True))
        return Box(offsets=offsets, sizes=sizes)

    one, other = draw_box(), draw_box()
    marks = np.zeros(shape, int)
    marks[one.slices()] += 1
    marks[other.slices()] += 1
    common = intersect(one, other)
    expected = np.zeros(shape, bool)
    if common is not None:
        expected[common.slices()] = True
    assert ((marks == 2) == expected).all()


def test_a_matrix_is_cut_into_the_end_of_a_row_whole_rows_and_the_beginning_of_a_row():
    boxes = list(flat_range_boxes((4, 3), 2, 10))
    assert [(box.offsets, box.sizes) for box in boxes] == [
        ((0, 2), (1, 1)), ((1, 0), (2, 3)), ((3, 0), (1, 1)),
    ]  # fmt: skip


def test_a_box_is_indexed_in_a_larger_one():
    values = np.arange(12).reshape(4, 3)
    held = Box(offsets=(1, 0), sizes=(3, 3))
    wanted = Box(offsets=(2, 1), sizes=(2, 2))
    stored = values[held.slices()]
    assert (stored[wanted.slices(held.offsets)] == values[2:4, 1:3]).all()
    assert intersect(wanted, whole((4, 3))) == wanted
