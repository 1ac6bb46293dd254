import pickle

import grain
import numpy as np
import pytest

from ideal_jax.data.pipeline import example_batches, packed_rows, training_batches
from ideal_jax.data.store import Example, TokenStore
from ideal_jax.mixture import MixturePlan

SIZES, T, S = (23, 40, 9), 16, 4


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("stores"), np.random.default_rng(0)

    def examples(domain, size):
        for i in range(size):
            length = int(rng.integers(3, T + 2))
            tokens = rng.integers(1, 100, length).astype(np.int32) + 1000 * domain
            yield Example(i, str(i), tokens, np.arange(length) >= rng.integers(1, length))

    return [TokenStore.write(root / str(d), examples(d, n)) for d, n in enumerate(SIZES)]


@pytest.fixture(scope="module")
def plan():
    return MixturePlan(SIZES, (10, 60, 9), seed=5)


@pytest.fixture(scope="module")
def table(plan, stores):
    return packed_rows(plan, stores, T, S, window=16)


def batches(table, stores, **changed):
    options = {"batch_size": 4, "row_length": T, "max_segments": S, "seed": 1, "reduction": "token"}
    return training_batches(table, stores, **{**options, **changed})


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        assert a[key].dtype == b[key].dtype


def items_of(batch):
    """(domain, item) of every example in a batch."""
    rows = zip(batch["domains"], batch["examples"], strict=True)
    return [(int(d), int(i)) for d, row in rows for i in row if i >= 0]


def check_rows(batch, stores, reduction):
    for b, domain in enumerate(batch["domains"]):
        start = 0
        for s, item in enumerate(i for i in batch["examples"][b] if i >= 0):
            tokens, mask = stores[domain][item]
            here = slice(start, start + len(tokens) - 1)
            np.testing.assert_array_equal(batch["tokens"][b, here], tokens[:-1])
            np.testing.assert_array_equal(batch["targets"][b, here], tokens[1:])
            np.testing.assert_array_equal(batch["segments"][b, here], s + 1)
            np.testing.assert_array_equal(batch["positions"][b, here], np.arange(len(tokens) - 1))
            share = mask[1:].sum() if reduction == "example" else 1
            np.testing.assert_allclose(batch["weights"][b, here], mask[1:] / share)
            start = here.stop
        for key in ("tokens", "targets", "segments", "positions", "weights"):
            assert not batch[key][b, start:].any()


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_a_batch_is_what_it_says(table, stores, reduction):
    for step in range(20):
        batch = batches(table, stores, reduction=reduction)[step]
        assert batch["tokens"].shape == (4, T)
        assert batch["examples"].shape == (4, S)
        assert {k: v.dtype.name for k, v in batch.items()} == {
            **dict.fromkeys(("tokens", "targets", "segments", "positions"), "int32"),
            **dict.fromkeys(("domains", "examples"), "int32"),
            "weights": "float32",
        }
        check_rows(batch, stores, reduction)
        if reduction == "example":
            np.testing.assert_allclose(batch["weights"].sum(), len(items_of(batch)), rtol=1e-5)


def test_an_epoch_is_the_plan(plan, table, stores):
    expected = sorted((d, int(i)) for d in range(3) for i in plan.items(d))
    epoch = batches(table, stores, batch_size=len(table))
    assert len(expected) == sum(plan.counts)
    for step in range(3):
        assert sorted(items_of(epoch[step])) == expected
    assert (epoch[0]["tokens"] != epoch[1]["tokens"]).any()


def test_batches_may_straddle_epochs(plan, table, stores):
    size = 7
    assert len(table) % size > 0
    steps = batches(table, stores, batch_size=size)
    seen = [item for step in range(len(table)) for item in items_of(steps[step])]
    assert sorted(seen) == sorted([(d, int(i)) for d in range(3) for i in plan.items(d)] * size)


def test_any_step_without_the_earlier_ones(table, stores):
    iterator = iter(batches(table, stores).to_iter_dataset(grain.ReadOptions(2, 4)))
    straight = [next(iterator) for _ in range(30)]
    for step in (29, 7, 0, 15):
        assert_equal(batches(table, stores)[step], straight[step])
    resumed = iter(batches(table, stores)[12:].to_iter_dataset())
    for step in range(12, 20):
        assert_equal(next(resumed), straight[step])
    assert batches(table, stores)[10**9]["tokens"].shape == (4, T)


def test_iterator_state_resumes(table, stores):
    grain.experimental.assert_equal_output_after_checkpoint(
        batches(table, stores)[:12].to_iter_dataset()
    )


def test_the_parts_of_two_processes_are_the_batch(table, stores):
    whole = batches(table, stores)
    low, high = batches(table, stores, rows=(0, 3)), batches(table, stores, rows=(3, 4))
    for step in (0, 3, 11):
        joined = {k: np.concatenate([low[step][k], high[step][k]]) for k in whole[step]}
        assert_equal(joined, whole[step])


def test_seeds_differ_and_pickles_do_not(table, stores):
    steps = batches(table, stores)
    assert (steps[0]["tokens"] != batches(table, stores, seed=2)[0]["tokens"]).any()
    assert_equal(pickle.loads(pickle.dumps(steps))[5], steps[5])


def test_a_larger_volume_keeps_the_rows_of_complete_windows(stores):
    tables = [
        packed_rows(MixturePlan(SIZES, (0, count, 0), 5), stores, T, S, window=8)
        for count in (32, 71)
    ]
    small, large = ([t.row(r).tolist() for r in range(len(t))] for t in tables)
    assert large[: len(small)] == small


def test_mistakes_in_the_call(table, stores):
    with pytest.raises(ValueError, match="stores of"):
        packed_rows(MixturePlan((1, 2, 3), (1, 1, 1), 0), stores, T, S, 16)
    with pytest.raises(ValueError, match=r"1\.\.4"):
        packed_rows(MixturePlan(SIZES, (9, 9, 9), 0), stores, 4, S, 16)
    empty = packed_rows(MixturePlan(SIZES, (0, 0, 0), 0), stores, T, S, 16)
    with pytest.raises(ValueError, match="no examples"):
        batches(empty, stores)


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_example_batches(stores, reduction):
    store, items = stores[1], [5, 3, 5, *range(10, 20)]
    made = example_batches(store, items, 1, batch_size=4, lengths=(16, 8), reduction=reduction)
    assert len(made) == 4
    first, second = list(made), list(made)
    for a, b in zip(first, second, strict=True):
        assert_equal(a, b)
    assert sorted(item for batch in made for _, item in items_of(batch)) == sorted(items)
    sizes = [int(store.lengths[i]) - 1 for batch in made for _, i in items_of(batch)]
    assert sizes == sorted(sizes)
    for batch in made:
        check_rows(batch, stores, reduction)
        longest = max(store.lengths[i] - 1 for _, i in items_of(batch))
        assert batch["tokens"].shape == (4, 8 if longest <= 8 else 16)
        assert batch["examples"].shape == (4, 1)
    last = made[len(made) - 1]
    assert last["examples"][:, 0].tolist()[1:] == [-1, -1, -1]
    assert not last["weights"][1:].any()
    assert not last["segments"][1:].any()


def test_example_batches_of_nothing_and_of_too_much(stores):
    options = {"batch_size": 4, "reduction": "token"}
    assert list(example_batches(stores[0], [], 0, lengths=(16,), **options)) == []
    with pytest.raises(ValueError, match="fits none"):
        example_batches(stores[0], range(SIZES[0]), 0, lengths=(4,), **options)
