import itertools

import numpy as np

from ideal_jax.data.duplicates import JACCARD, WORDS, duplicates, jaccard
from ideal_jax.data.words import words


def edited(rng, text, edits):
    """The text with some of its words replaced."""
    found = text.split()
    for place in rng.choice(len(found), edits, replace=False):
        found[place] = f"w{rng.integers(10**6)}"
    return " ".join(found)


def family(seed=0):
    """Texts around the threshold, far from it, and the same."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(60):
        base = " ".join(f"w{i}" for i in rng.integers(10**6, size=rng.integers(30, 120)))
        texts += [base, *(edited(rng, base, edits) for edits in rng.integers(0, 5, size=4))]
    return [texts[i] for i in rng.permutation(len(texts))]


def shingles(text):
    said = words(text)
    return {tuple(said[i : i + WORDS]) for i in range(len(said) - WORDS + 1)}


def similarity(a, b):
    return len(a & b) / len(a | b)


def test_near_duplicates_are_those_that_brute_force_finds():
    texts = family()
    sets = [shingles(text) for text in texts]
    found = duplicates(lambda: texts)
    first = {}
    values = []
    for i, text in enumerate(texts):
        assert found.exact[i] == first.get(text, -1)
        earlier = [similarity(sets[i], sets[j]) for j in range(i) if texts[j] != text]
        values += earlier
        expected = text not in first and any(value >= JACCARD for value in earlier)
        assert (found.near[i] >= 0) == expected
        if expected:
            assert found.near[i] < i
            assert found.similarity[i] == similarity(sets[i], sets[found.near[i]]) >= JACCARD
        first.setdefault(text, i)
    # The family has pairs on both sides of the threshold, or this would show nothing.
    assert sum(0.7 <= value < JACCARD for value in values) > 20
    assert sum(JACCARD <= value < 0.9 for value in values) > 20
    assert (found.exact >= 0).sum() > 20


def test_case_and_punctuation_make_a_near_duplicate_not_an_exact_one():
    texts = ["Say it, now, once more.", "say it now once more", "Say it, now, once more.", "say so"]
    found = duplicates(lambda: iter(texts))
    assert found.exact.tolist() == [-1, -1, 0, -1]
    assert found.near.tolist() == [-1, 0, -1, -1]
    assert found.similarity.tolist() == [0, 1, 0, 0]


def test_texts_of_few_words_are_like_nothing_but_themselves():
    found = duplicates(lambda: ["", "…", "!", "", "f(x) = 1", "f(x) - 1"])
    assert found.exact.tolist() == [-1, -1, -1, 0, -1, -1]
    assert (found.near < 0).all()
    assert len(duplicates(list).exact) == 0


def test_a_crowd_of_near_duplicates_is_found_whole():
    base = " ".join(f"word{i}" for i in range(40))
    texts = [f"{base} {i}" for i in range(500)]
    found = duplicates(lambda: texts)
    assert found.near[0] == -1
    assert (found.near[1:] >= 0).all()
    assert (found.near < np.arange(500)).all()


def test_jaccard():
    a, b = np.asarray([1, 2, 3, 4]), np.asarray([3, 4, 5])
    assert jaccard(a, b) == 2 / 5
    assert jaccard(a, a) == 1
    assert jaccard(a, a[:0]) == jaccard(a[:0], a[:0]) == 0


def test_progress_counts_the_texts():
    said = []
    duplicates(lambda: map(str, range(5)), said.append)
    assert said == list(itertools.accumulate([1] * 5))
