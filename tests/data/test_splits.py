import numpy as np
import pytest

from ideal_jax.data.records import Record
from ideal_jax.data.splits import prompt_key, split


def record(number, prompt):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"{number}"}]
    return Record(str(number), messages, f"f.jsonl:{number}")


def keys(*prompts):
    return np.array([prompt_key(record(n, p)) for n, p in enumerate(prompts)], np.uint64)


def test_what_is_held_out_is_disjoint_and_keeps_duplicates_together():
    prompts = [f"p{n % 80}" for n in range(160)]
    sets = split(keys(*prompts), keys("p3", "elsewhere"), None, 99, 10)
    train, test = ([prompts[i] for i in part] for part in (sets.train, sets.test))
    assert len(test) == 10
    assert len(set(test)) == 5
    assert not {*test, "p3"} & set(train)
    assert "p3" not in test
    assert (sets.overlapping, sets.eligible, len(sets.reference)) == (2, 158, 0)
    assert len(train) == 160 - 10 - 2
    both = split(keys(*prompts), None, None, 12, 10)
    assert both.test.size == 10
    assert both.reference.size == 12
    parts = [{prompts[i] for i in part} for part in (both.train, both.reference, both.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 80


@pytest.mark.parametrize("seed", range(3))
def test_the_cuts_do_not_depend_on_the_order_of_the_file(seed):
    prompts = [f"p{n % 90}" for n in range(130)]
    train, none = keys(*prompts), keys()
    order = np.random.default_rng(seed).permutation(len(train))
    for given in ((None, None), (none, None), (None, none)):
        one, other = (split(rows, *given, 9, 11) for rows in (train, train[order]))
        for part in ("train", "reference", "test"):
            assert getattr(one, part).tolist() == sorted(order[getattr(other, part)])


@pytest.mark.parametrize(
    ("examples", "held_out"),
    [(1, 0), (4, 1), (15, 3), (16, 4), (40, 4), (59, 5), (1000, 100), (9000, 256)],
)
def test_small_data_is_not_eaten(examples, held_out):
    sets = split(np.arange(examples, dtype=np.uint64), None, None, 256, 256)
    assert (sets.reference.size, sets.test.size) == (held_out, held_out)
    assert sets.train.size == examples - 2 * held_out >= examples / 2


def test_a_prompt_of_most_examples_stays_in_train():
    train = keys(*["again"] * 60, *(f"p{n}" for n in range(40)))
    sets = split(train, None, None, 10, 10)
    assert (sets.reference.size, sets.test.size) == (10, 10)
    assert set(range(60)) <= set(sets.train.tolist())


def test_a_given_test_set_is_taken_out_of_train():
    sets = split(keys("a", "b", "c", "a"), keys("b"), keys("a"), 100, 100)
    assert sets.train.tolist() == [2]
    assert sets.test.tolist() == sets.reference.tolist() == []
    assert sets.overlapping == 3


def test_no_test_set_wanted():
    assert split(keys("a", "b"), keys(), None, 0, 0).test.tolist() == []


def test_the_key_is_of_what_the_assistant_does_not_say():
    assert prompt_key(record(1, "p")) == prompt_key(record(2, "p")) != prompt_key(record(1, "q"))
    texts = [Record("1", [], "f:1", text) for text in ("p", "p", "q", "")]
    found = [prompt_key(text) for text in texts]
    assert found[0] == found[1]
    assert len({*found, prompt_key(record(1, "p"))}) == 4
