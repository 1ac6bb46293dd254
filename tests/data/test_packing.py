import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideal_jax.data.packing import pack

LENGTHS = st.lists(st.integers(1, 12), max_size=60)


def contents(rows):
    return [rows.order[a:b].tolist() for a, b in zip(rows.starts, rows.starts[1:], strict=False)]


@given(LENGTHS, st.integers(1, 4), st.integers(1, 20))
def test_every_example_once_and_no_row_overfull(lengths, max_segments, window):
    lengths = np.array(lengths, int)
    rows = pack(lengths, 12, max_segments, window)
    assert sorted(rows.order.tolist()) == list(range(len(lengths)))
    assert (rows.starts[0], rows.starts[-1]) == (0, len(lengths))
    for row in contents(rows):
        assert 1 <= len(row) <= max_segments
        assert lengths[row].sum() <= 12
        assert row == sorted(row)
        assert row[0] // window == row[-1] // window


@given(LENGTHS, LENGTHS, st.integers(1, 4), st.integers(1, 20))
def test_more_examples_keep_the_rows_of_complete_windows(lengths, more, max_segments, window):
    short = contents(pack(np.array(lengths, int), 12, max_segments, window))
    long = contents(pack(np.array(lengths + more, int), 12, max_segments, window))
    complete = len(lengths) // window * window
    kept = [row for row in short if row[-1] < complete]
    assert long[: len(kept)] == kept


def test_best_fit():
    rows = pack(np.array([3, 5, 7, 5, 4]), 12, 4, 8)
    assert contents(rows) == [[1, 2], [0, 3, 4]]


def test_too_long():
    with pytest.raises(ValueError, match=r"1\.\.12"):
        pack(np.array([13]), 12, 4, 8)


def test_quick_and_tight():
    lengths = np.random.default_rng(0).integers(1, 512, 100_000)
    start = time.perf_counter()
    rows = pack(lengths, 512, 16, 1024)
    assert time.perf_counter() - start < 10
    assert lengths.sum() / (512 * (len(rows.starts) - 1)) > 0.95
