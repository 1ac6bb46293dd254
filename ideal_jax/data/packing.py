"""Packing: which examples share a row. Arithmetic on lengths, nothing else."""

import bisect
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """R rows over M positions: row r holds positions ``order[starts[r]:starts[r + 1]]``.

    order: int64[M], a permutation of the positions. starts: int64[R + 1].
    """

    order: np.ndarray
    starts: np.ndarray


def pack(lengths: np.ndarray, row_length: int, max_segments: int, window: int) -> Rows:
    """Pack a sequence of examples into rows of at most ``row_length``, window by window.

    Each run of ``window`` consecutive examples is packed by itself (best fit, longest first), so a
    longer sequence keeps every row of the complete windows: more data extends the rows, it does not
    reshuffle them.

    Args:
      lengths: int[M], the room each example takes in a row (its tokens - 1), 1..row_length.
      row_length: room in a row, T.
      max_segments: most examples in a row, S.
      window: examples packed together. Larger is tighter and nests more coarsely.
    """
    lengths = np.asarray(lengths)
    if lengths.size and not (lengths.min() >= 1 and lengths.max() <= row_length):
        raise ValueError(f"lengths must be in 1..{row_length}")
    row_of = np.zeros(len(lengths), np.int64)
    count = 0
    for start in range(0, len(lengths), window):
        inside = slice(start, start + window)
        rows = _best_fit(lengths[inside], row_length, max_segments)
        row_of[inside] = count + rows
        count += rows.max() + 1
    order = np.argsort(row_of, kind="stable")
    return Rows(order, np.searchsorted(row_of[order], np.arange(count + 1)))


def _best_fit(lengths: np.ndarray, row_length: int, max_segments: int) -> np.ndarray:
    """int64[M]: the row of each example. Longest first, each into the fullest row that has room."""
    row_of = np.zeros(len(lengths), np.int64)
    held: list[int] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), ascending
    for position in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[position])
        place = bisect.bisect_left(open_rows, (length, 0))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
        else:
            room, row = row_length, len(held)
            held.append(0)
        row_of[position] = row
        held[row] += 1
        if held[row] < max_segments and room > length:
            bisect.insort(open_rows, (room - length, row))
    return row_of
