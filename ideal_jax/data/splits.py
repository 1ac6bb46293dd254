"""Train, reference and test sets that share no prompt."""

import hashlib
import json
from typing import NamedTuple

import numpy as np

from ideal_jax.data.records import Record


class Splits(NamedTuple):
    """What becomes of N train examples; ``overlapping`` of them belong to no set.

    train: int64[], positions of those to train on. test: int64[], of those that were held out.
    """

    train: np.ndarray
    test: np.ndarray
    overlapping: int


def split(
    train_N: np.ndarray, reference: np.ndarray, test: np.ndarray | None, test_examples: int
) -> Splits:
    """Remove reference and test prompts from train; cut a test set from train if there is none.

    The cut takes whole prompts in the order of their hash, until ``test_examples`` examples are
    held out: exact duplicates of a prompt stay on one side, and the order of the file is
    irrelevant.

    Args:
      train_N, reference, test: the `prompt_key` of every example, uint64.
      test_examples: to hold out if ``test`` is None.
    """
    held_out = np.zeros(len(train_N), bool)
    taken = np.isin(train_N, reference)
    if test is None:
        held_out = np.isin(train_N, np.sort(train_N[~taken])[:test_examples])
    else:
        taken |= np.isin(train_N, test)
    kept = ~taken & ~held_out
    return Splits(
        np.flatnonzero(kept), np.flatnonzero(held_out), int(np.count_nonzero(taken & ~held_out))
    )


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
