import pickle

import grain
import numpy as np
import pytest

from ideal_jax.data.pipeline import example_batches, packed_rows, row_order, training_batches
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


@pytest.mark.parametrize("window", [8, 16])
@pytest.mark.parametrize(("fewer", "more"), [(32, 71), (30, 33), (7, 8), (39, 40), (50, 200)])
def test_a_larger_volume_keeps_the_rows_of_complete_windows(stores, window, fewer, more):
    tables = [
        packed_rows(MixturePlan(SIZES, (0, count, 0), 5), stores, T, S, window)
        for count in (fewer, more)
    ]
    small, large = ([t.row(r).tolist() for r in range(len(t))] for t in tables)
    kept = 0  # rows, until those of the complete windows are through
    for held in np.cumsum([len(row) for row in small]):
        kept += held <= fewer - fewer % window
    assert sum(map(len, small[:kept])) == fewer - fewer % window
    assert large[:kept] == small[:kept]


def by_domain(sizes):
    """(domain, row of the domain) of every row of a table."""
    return [(d, r) for d, size in enumerate(sizes) for r in range(size)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((50, 30, 20), (70, 30, 20)),  # one grows
        ((50, 30, 20), (20, 60, 20)),  # one for another
        ((50, 30, 20), (50, 0, 40)),  # one is left out
        ((1, 1, 1), (400, 300, 200)),
    ],
)
def test_rows_of_two_mixtures_keep_their_order(first, second):
    for seed, epoch in ((0, 0), (0, 1), (7, 2), (7 + (3 << 32), 5)):
        orders = []
        for sizes in (first, second):
            names, order = by_domain(sizes), row_order(sizes, seed, epoch)
            assert sorted(order.tolist()) == list(range(sum(sizes)))
            orders.append([names[number] for number in order])
        shared = set(orders[0]) & set(orders[1])
        assert len(shared) > 2
        kept = [[row for row in order if row in shared] for order in orders]
        assert kept[0] == kept[1]


def test_batches_of_two_mixtures_keep_their_order(stores):
    """From plans of whole windows to batches, over three epochs."""
    found = []
    for counts in ((16, 24, 8), (16, 40, 8), (8, 32, 8)):
        table = packed_rows(MixturePlan(SIZES, counts, 5), stores, T, S, window=8)
        steps = batches(table, stores, batch_size=len(table))
        found.append(
            [
                [(int(d), tuple(row)) for d, row in zip(b["domains"], b["examples"], strict=True)]
                for b in (steps[epoch] for epoch in range(3))
            ]
        )
    for epochs in zip(*found, strict=True):
        shared = set.intersection(*map(set, epochs))
        assert len(shared) > 10
        kept = [[row for row in rows if row in shared] for rows in epochs]
        assert kept[0] == kept[1] == kept[2]


def test_row_orders_differ_between_epochs_and_seeds():
    sizes = (40, 50)
    orders = [row_order(sizes, seed, epoch) for seed in (1, 2, 1 + (1 << 32)) for epoch in (0, 1)]
    for i, a in enumerate(orders):
        for b in orders[:i]:  # two random permutations have one fixed point on average
            assert (a == b).sum() < 10
    # Nor do two domains share their keys: they would come in pairs.
    places = np.argsort(row_order((500, 500), 3, 0))
    assert abs(np.corrcoef(places[:500], places[500:])[0, 1]) < 0.2


def test_a_domain_is_spread_evenly_over_an_epoch():
    sizes = (3000, 300, 700)
    order = row_order(sizes, seed=11, epoch=4)
    domains = np.repeat(np.arange(3), sizes)[order]
    for part in np.split(domains, 10):
        counts = np.bincount(part, minlength=3)
        expected = 400 * np.array(sizes) / 4000
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize(
    ("seed", "epoch", "known"),
    [(1, 0, [3, 0, 4, 1, 2, 6, 5]), (1 + (2 << 32), 3, [4, 2, 1, 3, 5, 6, 0])],
)
def test_a_row_order_is_that_of_every_machine_and_restart(seed, epoch, known):
    assert row_order((3, 4), seed, epoch).tolist() == known


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
