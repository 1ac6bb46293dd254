import itertools
import random
import re

import pytest

from ideal_jax.data import synthetic
from ideal_jax.data.sources import read_domain
from ideal_jax.errors import UserError

SMALL = {"counts": (30, 40, 50, 60, 400), "noise": 0.4, "reference": 20, "test": 25}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "data"
    synthetic.write(root, seed=3, **SMALL)
    return root


def pairs(path):
    return [(record.prompt[0]["content"], record.answer) for record in read_domain(path)]


def solve(prompt):
    """The right answer, by other means than the generator's."""
    task, body = prompt[0], prompt[1:-1]
    if task == "M":
        return "".join(sorted(body))
    if task == "C":
        while body != (body := re.sub(r"\(\)|\[\]|{}", "", body)):
            pass
        return body[::-1].translate(str.maketrans("([{", ")]}"))
    if task == "R":
        facts = [fact.split("<") for fact in body.split(",")]
        orders = itertools.permutations({letter for fact in facts for letter in fact})
        return next(
            "".join(o) for o in orders if all(o.index(a) + 1 == o.index(b) for a, b in facts)
        )
    if task == "I":
        word, times, separator, case = re.fullmatch(r"(\w+)(\d)(.)(.)", body).groups()
        return separator.join([word.upper() if case == "?" else word] * int(times))
    return "!" if "a" in body or "b" in body else body[::-1]


def test_the_documented_examples():
    lines = [line.split("|")[3] for line in synthetic.__doc__.splitlines() if "→" in line]
    examples = re.findall(r"(\S+) → (\S+)", " ".join(lines))
    assert len(examples) == 5
    for prompt, answer in examples:
        assert solve(prompt) == answer


@pytest.mark.parametrize("name", synthetic.DOMAINS)
def test_answers_are_right_and_prompts_never_repeat(root, name):
    sets = {s: pairs(root / name / f"{s}.jsonl") for s in ("train", "reference", "test")}
    sizes = dict(zip(synthetic.DOMAINS, SMALL["counts"], strict=True))
    assert [len(sets[s]) for s in sets] == [sizes[name], 20, 25]
    prompts = [prompt for rows in sets.values() for prompt, _ in rows]
    assert len(set(prompts)) == len(prompts)
    for split, rows in sets.items():
        wrong = sum(answer != solve(prompt) for prompt, answer in rows)
        if (name, split) == ("trust", "train"):
            assert 0.3 < wrong / len(rows) < 0.5
            assert all(a in ("!", p[-2:0:-1]) for p, a in rows)
        else:
            assert wrong == 0
        assert all(len(p) + len(a) <= 19 for p, a in rows)


def test_half_of_trust_is_refused():
    rng = random.Random(0)
    refused = sum(synthetic.DOMAINS["trust"](rng)[1] == "!" for _ in range(1000))
    assert 400 < refused < 600


def test_everything_depends_on_the_seed_alone(root, tmp_path):
    synthetic.write(tmp_path / "same", seed=3, **SMALL)
    synthetic.write(tmp_path / "other", seed=4, **SMALL)
    synthetic.write(tmp_path / "more", seed=3, **{**SMALL, "counts": (90,) * 5, "noise": 0.0})
    for path in sorted(root.rglob("*.jsonl")):
        name = path.relative_to(root)
        assert (tmp_path / "same" / name).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != path.read_bytes()
        if name.stem != "train":
            assert (tmp_path / "more" / name).read_bytes() == path.read_bytes()
        elif name.parent.name not in ("trust",):
            assert (tmp_path / "more" / name).read_bytes().startswith(path.read_bytes())


def test_more_prompts_than_there_are(tmp_path):
    with pytest.raises(UserError, match="domain math has only 10000 distinct prompts"):
        synthetic.write(
            tmp_path / "x", seed=0, counts=(10_001, 1, 1, 1, 1), noise=0, reference=1, test=1
        )
    assert not list(tmp_path.iterdir())


def test_the_base_knows_the_alphabet_but_no_domain(tmp_path):
    synthetic.write_base(tmp_path / "base.jsonl", seed=0, count=500)
    rows = pairs(tmp_path / "base.jsonl")
    assert {prompt[0] for prompt, _ in rows} == set("KUVNA")
    for prompt, answer in rows:
        body = prompt[1:-1]
        match prompt[0]:
            case "K":
                assert answer == body
            case "U":
                assert answer == body.upper()
            case "V":
                assert answer == body[::-1]
            case "N":
                facts, asked = body.split("?")
                assert f"{asked}<{answer}" in facts.split(",")
            case "A":
                assert int(answer) == (int(body[0]) + int(body[2])) % 10
