from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from handlers import grouping


def _arrays(*sizes: tuple[int, int]) -> dict[int, np.ndarray]:
    # Strides of 0: photographs take no memory here.
    return {
        i: np.broadcast_to(np.uint8(0), (height, width, 3))
        for i, (height, width) in enumerate(sizes)
    }


def test_equal_shapes_go_together() -> None:
    assert grouping.groups(_arrays((8, 8), (8, 9), (8, 8)), 8) == [[0, 2], [1]]


def test_every_stream_gets_pictures() -> None:
    assert grouping.groups(_arrays(*[(8, 8)] * 5), 8, streams=2) == [[0, 1, 2], [3, 4]]
    assert grouping.groups(_arrays(*[(8, 8)] * 3), 1, streams=2) == [[0], [1], [2]]


def test_photographs_do_not_go_together() -> None:
    assert grouping.groups(_arrays(*[(3000, 4000)] * 2), 8) == [[0], [1]]
    assert grouping.groups(_arrays(*[(2000, 2000)] * 4), 8) == [[0, 1, 2, 3]]
    assert grouping.groups(_arrays(*[(2000, 2000)] * 6), 8, streams=2) == [[0, 1], [2, 3], [4, 5]]


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=20),
    st.integers(1, 16),
    st.integers(1, 4),
)
def test_everything_is_in_one_group(sizes: list[tuple[int, int]], most: int, streams: int) -> None:
    arrays = _arrays(*sizes)
    found = grouping.groups(arrays, most, streams)
    assert sorted(key for group in found for key in group) == list(arrays)
    for group in found:
        assert len({arrays[key].shape for key in group}) == 1
        assert len(group) <= most
        pixels = sum(arrays[key].shape[0] * arrays[key].shape[1] for key in group)
        assert len(group) == 1 or pixels * streams <= grouping.PIXELS_AT_ONCE
