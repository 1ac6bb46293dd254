"""Texts as words and word n-grams, for comparing texts in any language."""

import functools
import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

# Scripts written without spaces, by how their characters' Unicode names begin.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so multiplying by it loses nothing of 64 bits


class _Separated(dict[int, str]):
    """Character → itself if it belongs to a word, a space if not, filled in as met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character)[0] not in "LNM":
            value = " "
        elif unicodedata.name(character, "").startswith(_UNSPACED):
            value = f" {character} "
        else:
            value = character
        self[code] = value
        return value


_separated = _Separated()


def words(text: str) -> list[str]:
    """The normalised words of a text: NFKC, case folded, no punctuation, symbols or white space.

    In scripts that do not separate words (Chinese, Japanese, Thai, …) each character is a word.
    """
    return unicodedata.normalize("NFKC", text).casefold().translate(_separated).split()


def hashed(texts: Iterable[str]) -> np.ndarray:
    """uint64[M]: a hash of each word, the same on every machine."""
    return np.fromiter(map(_hash, texts), np.uint64)


@functools.lru_cache(maxsize=1 << 20)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def grams(hashes: np.ndarray, n: int) -> np.ndarray:
    """uint64[max(0, M - n + 1)]: a hash of every n words in a row, given those of the M words."""
    count = max(0, len(hashes) - n + 1)
    found = np.zeros(count, np.uint64)
    for k in range(n):
        found = found * np.uint64(_MULTIPLIER) + hashes[k : k + count]
    return found
