"""Examples of one set that repeat each other: exactly, or nearly."""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ideal_jax.data.words import grams, hashed, words

JACCARD = 0.8  # from here on two examples are nearly the same
WORDS = 5  # in a row are what examples are compared by
# Examples as similar as JACCARD meet in at least one of these bands in 99.995 % of all cases.
_BANDS, _ROWS = 25, 5
_NEIGHBOURS = 64  # of a band, looked at before an example
_rng = np.random.default_rng(0)
_A = _rng.integers(0, 2**63, _BANDS * _ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
_B = _rng.integers(0, 2**64, _BANDS * _ROWS, np.uint64, endpoint=False)


class Duplicates(NamedTuple):
    """What earlier example each of N repeats.

    Attributes:
      exact: int64[N], the first example of the very same text, -1 if it is the first itself.
      near: int64[N], an earlier one whose Jaccard similarity is at least `JACCARD`, -1 if there is
        none or the example is an exact duplicate.
      similarity: float64[N], that similarity; 0 where ``near`` is -1.
    """

    exact: np.ndarray
    near: np.ndarray
    similarity: np.ndarray


def duplicates(
    read: Callable[[], Iterable[str]], progress: Callable[[int], None] = lambda done: None
) -> Duplicates:
    """Find the duplicates among the texts that ``read()`` gives, the same at each call.

    Near duplicates share at least `JACCARD` of all their different `WORDS` normalised words in a
    row; a text of fewer words has none. Candidates are found by MinHash with banding (Broder
    1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3) and then compared
    exactly. Memory: 208 bytes per text, and the n-grams of those that have a candidate.

    Args:
      read: is called twice.
      progress: is told how many texts of the first reading are done.
    """
    same, bands = [], []
    for number, text in enumerate(read()):
        same.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))
        bands.append(_bands(_shingles(text), number))
        progress(number + 1)
    keys = np.asarray(same, np.uint64)
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    exact = np.where(first[place] == np.arange(len(keys)), -1, first[place])
    pairs = _candidates(np.asarray(bands, np.uint64).reshape(-1, _BANDS), exact < 0)
    wanted = np.zeros(len(keys), bool)
    wanted[pairs.reshape(-1)] = True
    shingles = {i: _shingles(text) for i, text in enumerate(read()) if wanted[i]}
    near, similarity = np.full(len(keys), -1, np.int64), np.zeros(len(keys))
    for later, earlier in pairs.tolist():
        if near[later] < 0:
            value = jaccard(shingles[later], shingles[earlier])
            if value >= JACCARD:
                near[later], similarity[later] = earlier, value
    return Duplicates(exact, near, similarity)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sets, each without repetition."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(1, len(a) + len(b) - common)


def _shingles(text: str) -> np.ndarray:
    """uint64[]: the different n-grams of a text."""
    return np.unique(grams(hashed(words(text)), WORDS))


def _bands(shingles: np.ndarray, number: int) -> np.ndarray:
    """uint64[bands]; equal ones make two texts candidates. A text without n-grams has none."""
    if not len(shingles):
        return np.full(_BANDS, number, np.uint64)
    smallest = (shingles[:, None] * _A + _B).min(axis=0).reshape(_BANDS, _ROWS)
    key = np.zeros(_BANDS, np.uint64)
    for row in smallest.T:
        key = key * np.uint64(0x9E3779B97F4A7C15) + row
    return key


def _candidates(bands_NxB: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """int64[P, 2]: (later, earlier) pairs that meet in a band; those that meet more often first."""
    numbers = np.flatnonzero(firsts)
    met = [np.zeros(0, np.int64)]
    for band in bands_NxB[numbers].T:
        order = np.argsort(band, kind="stable")
        sorted_band, ordered = band[order], numbers[order]
        for lag in range(1, _NEIGHBOURS + 1):
            equal = sorted_band[lag:] == sorted_band[:-lag]
            if not equal.any():
                break
            met.append(ordered[lag:][equal] * len(bands_NxB) + ordered[:-lag][equal])
    pairs, count = np.unique(np.concatenate(met), return_counts=True)
    later, earlier = np.divmod(pairs, max(1, len(bands_NxB)))
    order = np.lexsort((earlier, -count, later))
    return np.stack([later[order], earlier[order]], axis=1)
