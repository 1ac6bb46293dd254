"""Train, reference and test sets that share no prompt."""

import hashlib
import json
from typing import NamedTuple

import numpy as np

from ideal_jax.data.records import Record


class Splits(NamedTuple):
    """What becomes of N train examples; ``overlapping`` of them belong to no set.

    train: int64[], positions of those to train on. reference, test: int64[], of those that were
    held out. eligible: how many could have been, because no given set has their prompt.
    """

    train: np.ndarray
    reference: np.ndarray
    test: np.ndarray
    overlapping: int
    eligible: int


def split(
    train_N: np.ndarray,
    reference: np.ndarray | None,
    test: np.ndarray | None,
    reference_examples: int,
    test_examples: int,
) -> Splits:
    """Remove reference and test prompts from train; cut those sets from train that are not given.

    A cut takes whole prompts in the order of their hash, the test set from one end and the
    reference set from the other: exact duplicates of a prompt stay on one side, and the order of
    the file is irrelevant. It holds out no more than `most` of the examples.

    Args:
      train_N, reference, test: the `prompt_key` of every example, uint64; None: not given.
      reference_examples, test_examples: to hold out if that set is not given.
    """
    given = [keys for keys in (reference, test) if keys is not None]
    taken = np.isin(train_N, np.concatenate([*given, train_N[:0]]))
    eligible = train_N[~taken]
    room = most(len(eligible))
    held, cut = np.zeros_like(taken), []
    for keys, wanted, step in ((test, test_examples, 1), (reference, reference_examples, -1)):
        found = held[:0]
        if keys is None:
            found = np.isin(train_N, _first(train_N[~taken & ~held], min(wanted, room), step))
            held |= found
        cut.append(np.flatnonzero(found))
    return Splits(
        np.flatnonzero(~taken & ~held), cut[1], cut[0], int(np.count_nonzero(taken)), len(eligible)
    )


def most(examples: int) -> int:
    """How many of a domain's examples may be held out as one other set.

    A tenth; of fewer than 40 a quarter, up to 4, which is the least that a reference set needs.
    """
    return max(examples // 10, min(4, examples // 4))


def _first(keys: np.ndarray, wanted: int, step: int) -> np.ndarray:
    """uint64[]: the first keys in ascending (``step`` 1) or descending (-1) order.

    No more than ``wanted`` examples have them.
    """
    found = []
    values, counts = np.unique(keys, return_counts=True)
    for value, count in zip(values[::step].tolist(), counts[::step].tolist(), strict=True):
        if wanted == 0:
            break
        if count <= wanted:  # a prompt of too many examples stays in train
            found.append(value)
            wanted -= count
    return np.asarray(found, np.uint64)


def prompt_key(record: Record) -> int:
    """64 bits of the SHA-256 of all that is not said by the assistant, or of a text.

    Equal for exact duplicates. That two of ten million prompts share one has odds of 1 : 300 000.
    """
    turns: object = record.text
    if record.text is None:
        turns = [(m["role"], m["content"]) for m in record.messages if m["role"] != "assistant"]
        turns = [*turns, record.tools] if record.tools else turns
    digest = hashlib.sha256(json.dumps(turns).encode()).digest()
    return int.from_bytes(digest[:8], "big")
