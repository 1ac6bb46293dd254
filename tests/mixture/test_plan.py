import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideal_jax.mixture import MixturePlan, permutation

sizes_and_counts = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 150)), min_size=1, max_size=5
).map(lambda pairs: tuple(zip(*pairs, strict=True)))
seeds = st.integers(0, 2**32 - 1)


@given(sizes_and_counts, seeds)
def test_exact_counts_of_items_that_exist_repeated_evenly(shape, seed):
    sizes, counts = shape
    plan = MixturePlan(sizes, counts, seed)
    for domain, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        items = plan.items(domain)
        assert items.shape == (count,)
        times = np.bincount(items, minlength=size)
        assert len(times) == size
        assert times.max() - times.min() <= (1 if count % size else 0)


@given(sizes_and_counts, seeds, st.data())
def test_a_smaller_volume_is_a_prefix(shape, seed, data):
    sizes, counts = shape
    fewer = tuple(data.draw(st.integers(0, count)) for count in counts)
    large, small = MixturePlan(sizes, counts, seed), MixturePlan(sizes, fewer, seed)
    for domain, count in enumerate(fewer):
        np.testing.assert_array_equal(small.items(domain), large.items(domain)[:count])
    assert (small.digest() == large.digest()) == (fewer == counts)


@given(st.integers(0, 200), seeds, st.integers(0, 2**20))
def test_permutation(size, seed, domain):
    order = permutation(size, seed, domain)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    np.testing.assert_array_equal(order, permutation(size, seed, domain))


@settings(max_examples=20)
@given(st.tuples(seeds, seeds), st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_another_key_is_another_permutation(pair, parts):
    same = (pair[0], parts[0]) == (pair[1], parts[1])
    first, second = (permutation(1000, *key) for key in zip(pair, parts, strict=True))
    assert np.array_equal(first, second) == same


def test_the_permutation_is_the_same_on_every_machine_and_for_ever():
    # A work directory holds plans by seed: these numbers may never change.
    assert permutation(8, 0, 1).tolist() == [1, 4, 6, 5, 7, 3, 2, 0]
    digest = "e48b87af4f69b725f9359a978c06ed840b2bfb3dd1c88aa117a03a458760556f"
    assert MixturePlan((3, 5), (4, 2), 7).digest() == digest


@pytest.mark.parametrize("domain", [0, 1])
def test_domains_and_passes_differ(domain):
    items = MixturePlan((50, 50), (100, 100), 3).items(domain)
    assert not np.array_equal(items[:50], items[50:])
    assert not np.array_equal(items, MixturePlan((50, 50), (100, 100), 3).items(1 - domain))
