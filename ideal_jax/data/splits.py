"""Train, reference and test sets that share no prompt."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

from ideal_jax.data.sources import Record
from ideal_jax.errors import UserError


class Splits(NamedTuple):
    """The three sets of one domain; ``overlapping`` train records were dropped."""

    train: list[Record]
    reference: list[Record]
    test: list[Record]
    overlapping: int


def split(
    train: Sequence[Record],
    reference: Sequence[Record],
    test: Sequence[Record] | None,
    test_examples: int,
) -> Splits:
    """Remove reference and test prompts from train; cut a test set from train if there is none.

    The cut takes whole prompts in the order of their hash, until ``test_examples`` records are
    held out: exact duplicates of a prompt stay on one side, and the order of the file is
    irrelevant.
    """
    keys = [prompt_key(record) for record in train]
    taken = {prompt_key(record) for record in reference}
    if test is None:
        candidates = sorted(key for key in keys if key not in taken)
        held_out = set(candidates[:test_examples])
        test = [record for record, key in zip(train, keys, strict=True) if key in held_out]
        remaining = [pair for pair in zip(train, keys, strict=True) if pair[1] not in held_out]
    else:
        taken |= {prompt_key(record) for record in test}
        remaining = list(zip(train, keys, strict=True))
    kept = [record for record, key in remaining if key not in taken]
    if not kept:
        raise UserError(
            f"{train[0].where.rpartition(':')[0]}: no example is left to train on after the test "
            f"set ({len(test)}) and prompts of the reference set are taken out; "
            "lower data.test_examples or add examples"
        )
    return Splits(kept, list(reference), list(test), len(remaining) - len(kept))


def prompt_key(record: Record) -> str:
    """SHA-256 of all that is not said by the assistant: equal for exact duplicate prompts."""
    turns = [(m["role"], m["content"]) for m in record.messages if m["role"] != "assistant"]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()
