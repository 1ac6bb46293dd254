import pytest

from ideal_jax.data.sources import Record
from ideal_jax.data.splits import split
from ideal_jax.errors import UserError


def records(*prompts):
    return [
        Record(
            str(n),
            [{"role": "user", "content": p}, {"role": "assistant", "content": f"{n}"}],
            f"f.jsonl:{n}",
        )
        for n, p in enumerate(prompts)
    ]


def prompts(rows):
    return [row.prompt[0]["content"] for row in rows]


def test_the_held_out_test_is_disjoint_and_keeps_duplicates_together():
    train = records(*(f"p{n % 40}" for n in range(80)))
    sets = split(train, records("p3", "elsewhere"), None, 10)
    taken = set(prompts(sets.test))
    assert len(sets.test) == 10
    assert len(taken) == 5
    assert not taken & set(prompts(sets.train))
    assert "p3" not in taken | set(prompts(sets.train))
    assert sets.overlapping == 2
    assert len(sets.train) == 80 - 10 - 2


def test_the_cut_does_not_depend_on_the_order_of_the_file():
    train = records(*(f"p{n}" for n in range(50)))
    forward, backward = (split(rows, [], None, 9).test for rows in (train, train[::-1]))
    assert forward == backward[::-1]


def test_a_given_test_set_is_kept_and_taken_out_of_train():
    sets = split(records("a", "b", "c", "a"), records("b"), records("a"), 100)
    assert prompts(sets.train) == ["c"]
    assert prompts(sets.test) == ["a"]
    assert sets.overlapping == 3


def test_nothing_left_to_train_on_is_an_error():
    with pytest.raises(UserError, match=r"^f.jsonl: no example is left.*data.test_examples"):
        split(records("a", "b"), records("b"), None, 5)


def test_no_test_set_wanted():
    assert split(records("a", "b"), [], None, 0).test == []
