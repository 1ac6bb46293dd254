import numpy as np

from ideal_jax.data.records import Record
from ideal_jax.data.splits import prompt_key, split


def record(number, prompt):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"{number}"}]
    return Record(str(number), messages, f"f.jsonl:{number}")


def keys(*prompts):
    return np.array([prompt_key(record(n, p)) for n, p in enumerate(prompts)], np.uint64)


def test_the_held_out_test_is_disjoint_and_keeps_duplicates_together():
    prompts = [f"p{n % 40}" for n in range(80)]
    sets = split(keys(*prompts), keys("p3", "elsewhere"), None, 10)
    train, test = ([prompts[i] for i in part] for part in (sets.train, sets.test))
    assert len(test) == 10
    assert len(set(test)) == 5
    assert not {*test, "p3"} & set(train)
    assert "p3" not in test
    assert sets.overlapping == 2
    assert len(train) == 80 - 10 - 2


def test_the_cut_does_not_depend_on_the_order_of_the_file():
    train, none = keys(*(f"p{n}" for n in range(50))), keys()
    forward, backward = (split(rows, none, None, 9).test for rows in (train, train[::-1]))
    assert forward.tolist() == (49 - backward[::-1]).tolist()


def test_a_given_test_set_is_taken_out_of_train():
    sets = split(keys("a", "b", "c", "a"), keys("b"), keys("a"), 100)
    assert sets.train.tolist() == [2]
    assert sets.test.tolist() == []
    assert sets.overlapping == 3


def test_no_test_set_wanted():
    assert split(keys("a", "b"), keys(), None, 0).test.tolist() == []


def test_the_key_is_of_what_the_assistant_does_not_say():
    assert prompt_key(record(1, "p")) == prompt_key(record(2, "p")) != prompt_key(record(1, "q"))
    texts = [Record("1", [], "f:1", text) for text in ("p", "p", "q", "")]
    found = [prompt_key(text) for text in texts]
    assert found[0] == found[1]
    assert len({*found, prompt_key(record(1, "p"))}) == 4
