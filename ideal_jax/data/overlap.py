"""Which examples share text with a benchmark, or with a held-out set.

A benchmark item is one line of a JSONL file; every string in it, however deep, is one of its texts.
Texts are compared as words (`words`), so case, punctuation and layout do not matter:

    13 words or more   any 13 words in a row that are also in a row in an example
    8 to 12 words      all of them in a row, anywhere in an example
    4 to 7 words       they are all that a turn of the example says
    2 or 3 words       the same, but only if the item has no longer text

Words in a row are no evidence if fewer than half of them are different words with a letter (rows of
numbers, ``a a a``), nor if more than 10 items have them: that is a benchmark's own template. Hashes
of 64 bits stand for the words; that any of 10^9 training n-grams agrees by chance with one of 10^6
of a benchmark has odds of 1 : 18 000.

The length is that of GPT-3's report (arXiv 2005.14165, appendix C), which takes 8 to 13 words and
forgives what more than 10 *training* documents have. Fine-tuning sets repeat examples, so a leak
could forgive itself: here the items are counted.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ideal_jax.data.records import Record
from ideal_jax.data.words import grams, hashed, words

LONGEST = 13  # words that are compared at one time
EMBEDDED = 8  # shorter texts must be all that a turn says
SHORTEST = 4  # shorter texts do not count beside longer ones
TEMPLATE = 10  # items; what more of them share is no evidence
_CHUNK = 512  # examples looked at together

# Where an example is found, and its turns.
Example = tuple[str, Sequence[str]]


class Item(NamedTuple):
    """One item that must not be trained on; ``texts`` are compared one by one."""

    where: str
    texts: Sequence[str]


class Hit(NamedTuple):
    """An example that shares text with an item.

    Attributes:
      example: its number.
      where: where it is found.
      item: number of the item.
      shared: the first words that both have in a row.
      share: of the item's n-grams, how many the example has.
    """

    example: int
    where: str
    item: int
    shared: str
    share: float


class _Table(NamedTuple):
    """The n-grams of one length, sorted, and the item that each is of."""

    hashes: np.ndarray
    items: np.ndarray


class Index:
    """The n-grams of N items: 12 bytes each, whatever is compared with them.

    Args:
      items: read once.
    """

    def __init__(self, items: Iterable[Item]):
        self.where: list[str] = []
        found: dict[int, list[tuple[np.ndarray, int]]] = {}
        for number, item in enumerate(items):
            self.where.append(item.where)
            for n, hashes in _item_grams(item.texts):
                found.setdefault(n, []).append((hashes, number))
        self._sizes = np.zeros(len(self.where), np.int64)
        self._tables: dict[int, _Table] = {}
        for n, parts in sorted(found.items(), reverse=True):
            hashes = np.concatenate([part for part, _ in parts])
            items_of = np.repeat([item for _, item in parts], [len(part) for part, _ in parts])
            self._tables[n] = table = _distinct(hashes, items_of)
            self._sizes += np.bincount(table.items, minlength=len(self.where))

    def hits(self, examples: Iterable[Example]) -> Iterator[Hit]:
        """Every pair of an example and an item that share text, in the order of the examples."""
        numbered = enumerate(examples)
        while chunk := list(itertools.islice(numbered, _CHUNK)):
            for (place, item), shared in sorted(self._shared([e for _, e in chunk]).items()):
                number, (where, _) = chunk[place]
                share = len(shared) / self._sizes[item]
                yield Hit(number, where, item, next(iter(shared.values())), float(share))

    def _shared(self, examples: Sequence[Example]) -> dict[tuple[int, int], dict[int, str]]:
        """(example, item) → hash → words of every n-gram that both have, the longest first."""
        turns = [(e, words(text)) for e, (_, texts) in enumerate(examples) for text in texts]
        lengths = np.asarray([len(turn) for _, turn in turns], np.int64)
        turn_of = np.repeat(np.arange(len(turns)), lengths)
        said = [word for _, turn in turns for word in turn]
        hashes = hashed(said)
        found: dict[tuple[int, int], dict[int, str]] = {}
        for n, table in self._tables.items():
            searched = grams(hashes, n)
            within = turn_of[: len(searched)] == turn_of[n - 1 :]
            if n < EMBEDDED:
                within &= lengths[turn_of[: len(searched)]] == n
            starts = np.flatnonzero(within)
            low = np.searchsorted(table.hashes, searched[starts], "left")
            high = np.searchsorted(table.hashes, searched[starts], "right")
            for k in np.flatnonzero(high > low):
                start = int(starts[k])
                text = " ".join(said[start : start + n])
                for item in table.items[low[k] : high[k]].tolist():
                    pair = turns[turn_of[start]][0], item
                    found.setdefault(pair, {}).setdefault(int(searched[start]), text)
        return found


def record_texts(record: Record) -> list[str]:
    """Everything a record says: turns with their reasoning and calls, and tools; or its text."""
    if record.text is not None:
        return [record.text]
    said = []
    for turn in record.messages:
        said += [turn[key] for key in ("reasoning_content", "content") if turn.get(key)]
        said += [json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return said + [json.dumps(tool, ensure_ascii=False) for tool in record.tools or ()]


def examples(records: Iterable[Record]) -> Iterator[Example]:
    """Records as what `Index.hits` looks at."""
    return ((record.where, record_texts(record)) for record in records)


def _item_grams(texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """(n, uint64[]) of every text of an item that counts."""
    said = [words(text) for text in texts]
    least = max(2, min(SHORTEST, max(map(len, said), default=0)))
    for text in said:
        if len(text) < least:
            continue
        n = min(len(text), LONGEST)
        telling = [_is_telling(text[k : k + n]) for k in range(len(text) - n + 1)]
        yield n, grams(hashed(text), n)[telling]


def _is_telling(row: Sequence[str]) -> bool:
    return 2 * sum(not word.isdecimal() for word in set(row)) >= len(row)


def _distinct(hashes: np.ndarray, items: np.ndarray) -> _Table:
    """Each pair once, without the n-grams that too many items have."""
    order = np.lexsort((items, hashes))
    hashes, items = hashes[order], items[order].astype(np.int32)
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1])
    hashes, items = hashes[new], items[new]
    _, place, count = np.unique(hashes, return_inverse=True, return_counts=True)
    kept = count[place] <= TEMPLATE
    return _Table(hashes[kept], items[kept])
