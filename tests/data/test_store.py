import pickle

import numpy as np
import pytest

from ideal_jax.data.store import Example, TokenStore


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(count):
        length = int(rng.integers(3, 12))
        mask = np.arange(length) >= rng.integers(1, length)
        yield Example(i, f"é{i}", rng.integers(0, 1000, length).astype(np.int32), mask)


def ids(store):
    return [store.id(i) for i in range(len(store))]


def test_what_is_written_is_read(tmp_path):
    store = TokenStore.write(tmp_path / "s", examples(50))
    assert len(store) == 50
    for i in np.random.default_rng(1).permutation(50):
        _, _, tokens, mask, _ = list(examples(50))[i]
        np.testing.assert_array_equal(store[i][0], tokens)
        np.testing.assert_array_equal(store[i][1], mask)
        assert (store[i][0].dtype, store[i][1].dtype) == (np.int32, bool)
        assert store.lengths[i] == len(tokens)
        assert store.supervised[i] == mask[1:].sum()
    np.testing.assert_array_equal(store[-1][0], store[49][0])
    with pytest.raises(IndexError):
        store[50]
    assert ids(store) == [f"é{i}" for i in range(50)]
    assert (store.truncated, store.unsupervised) == (0, 0)


def test_long_examples_are_cut_and_unsupervised_ones_left_out(tmp_path):
    answer_last = np.array([False, False, False, True])
    rows = [
        Example(0, "whole", np.arange(3), answer_last[1:]),
        Example(1, "cut to nothing", np.arange(4), answer_last),
        Example(2, "cut", np.arange(4), ~answer_last),
        Example(3, "only the first token, which nothing predicts", np.arange(3), np.arange(3) == 0),
    ]
    store = TokenStore.write(tmp_path / "s", rows, max_length=3)
    assert ids(store) == ["whole", "cut"]
    assert store.kept.tolist() == [0, 2]
    assert store.lengths.tolist() == [3, 3]
    assert store.supervised.tolist() == [1, 2]
    assert (store.truncated, store.unsupervised) == (2, 2)


def test_the_digest_is_of_the_content(tmp_path):
    a, b, c = (
        TokenStore.write(tmp_path / name, examples(20, seed)).digest
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert a == b != c


def test_an_open_store_can_be_sent_to_another_process(tmp_path):
    store = TokenStore.write(tmp_path / "s", examples(5))
    first = store[3]
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy[3][0], first[0])
    assert copy.digest == TokenStore.open(tmp_path / "s").digest


def test_an_empty_store_opens(tmp_path):
    store = TokenStore.write(tmp_path / "s", [])
    assert len(store) == 0
    assert list(store) == []


def test_a_failed_write_leaves_nothing(tmp_path):
    def failing():
        yield from examples(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TokenStore.write(tmp_path / "s", failing())
    assert not list(tmp_path.iterdir())
    assert len(TokenStore.write(tmp_path / "s", examples(3))) == 3
