import numpy as np
import pytest

from ideal_jax.data.words import grams, hashed, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  STOP,\n\tme-now!", ["don", "t", "stop", "me", "now"]),
        ("ﬁne ＡＢＣ Straße x² $5.00", ["fine", "abc", "strasse", "x2", "5", "00"]),
        ("snake_case+1", ["snake", "case", "1"]),
        # Vowel signs belong to their word.
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("我们 abc去。", ["我", "们", "abc", "去"]),
        ("テスト", ["テ", "ス", "ト"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("🙂 … ---", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_grams_are_equal_where_the_words_are():
    hashes = hashed(["a", "b", "c", "a", "b", "d", "b", "a"])
    pairs = grams(hashes, 2)
    assert len(pairs) == 7
    assert pairs[0] == pairs[3]
    assert len(np.unique(pairs)) == 6  # "a b" twice; "b a" is another
    np.testing.assert_array_equal(grams(hashes, 1), hashes)
    assert len(grams(hashes, 9)) == len(grams(hashed([]), 2)) == 0


def test_hashes_are_the_same_on_every_machine():
    assert hashed(["word"]).tolist() == [10776770685243991114]
