import gzip
import json

import numpy as np
import pytest

from ideal_jax.data.benchmarks import Benchmarks
from ideal_jax.data.overlap import Index, Item, record_texts
from ideal_jax.data.records import Record
from ideal_jax.errors import UserError

RNG = np.random.default_rng(0)
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ay")]


def prose(n):
    """n words that nothing else says."""
    return ["".join(RNG.choice(SYLLABLES, 3)) for _ in range(n)]


def said(count, low, high):
    return [" ".join(prose(int(RNG.integers(low, high)))) for _ in range(count)]


LONG, SHORT, TINY = said(40, 20, 60), said(20, 8, 13), said(20, 4, 8)
QUESTIONS = [*LONG, *SHORT, *TINY]
CHINESE = "从前有一座山山里有一座庙庙里有个老和尚在讲故事"


def index():
    items = [Item(f"bench:{i}", [q, "yes"]) for i, q in enumerate(QUESTIONS, start=1)]
    return Index([*items, Item("bench:zh", [CHINESE])])


def shout(text):
    return "  ".join(text.upper().split()).replace("  ", "!! ", 3) + "?"


def planted():
    """(turns, the item they leak) of 20 examples, every kind at least twice."""
    window = " ".join(LONG[4].split()[3:16])
    leaks = [
        ([LONG[0], "a"], 0),  # verbatim
        ([LONG[1] + "\n", "a"], 1),
        ([SHORT[0], "a"], 40),
        ([TINY[0], "a"], 60),
        ([shout(LONG[2]), "a"], 2),  # case, punctuation, layout
        ([shout(SHORT[1]), "a"], 41),
        ([f"«{TINY[1].title()}»…", "a"], 61),
        ([LONG[3].replace(" ", "\u00a0\n"), "a"], 3),
        ([f"{said(1, 30, 40)[0]} {window} {said(1, 30, 40)[0]}", "a"], 4),  # a fragment
        ([" ".join(LONG[5].split()[-13:]), "a"], 5),
        ([" ".join(LONG[6].split()[:13]), "a"], 6),
        ([f"Please answer: {LONG[7]} Thank you", "a"], 7),  # embedded
        ([f"Please answer: {SHORT[2]} Thank you", "a"], 42),
        ([f"{said(1, 200, 300)[0]}\n\n{LONG[8]}", "a"], 8),
        ([said(1, 20, 30)[0], LONG[9]], 9),  # in the answer
        ([said(1, 20, 30)[0], f"It is {shout(SHORT[3])}"], 43),
        ([said(1, 20, 30)[0], TINY[2]], 62),
        (["hi", "a", LONG[10]], 10),  # in a later turn
        ([f"讲：{CHINESE[5:20]}。", "a"], 80),  # a script without spaces
        (["好", CHINESE], 80),
    ]
    assert len(leaks) == 20
    return leaks


def innocent():
    almost = LONG[11].split()
    return [
        *([question, "yes"] for question in said(300, 5, 80)),
        ["yes", "yes"],
        # Twelve words of a long item, with another word between, or split over two turns.
        [" ".join(almost[:12]), "a"],
        [" ".join([*almost[:12], "other", *almost[12:20]]), "a"],
        [" ".join(almost[:7]), " ".join(almost[7:14])],
        # A short item within more, a medium one with a word missing.
        [f"Well {TINY[3]}", "a"],
        [" ".join(SHORT[4].split()[:-1]), "a"],
        [CHINESE[:12], "a"],
    ]


def test_twenty_leaks_are_found_and_nothing_else():
    leaks, clean = planted(), innocent()
    examples = [(f"train:{i}", turns) for i, turns in enumerate([t for t, _ in leaks] + clean)]
    order = RNG.permutation(len(examples))
    hits = list(index().hits(examples[i] for i in order))
    assert {(hit.where, hit.item) for hit in hits} == {
        (f"train:{i}", item) for i, (_, item) in enumerate(leaks)
    }
    assert len(hits) == len(leaks)
    assert [order[hit.example] for hit in hits] == [int(h.where.split(":")[1]) for h in hits]


def test_a_hit_tells_what_is_shared_and_how_much_of_the_item():
    text = LONG[0].split()
    found = {
        hit.where: hit
        for hit in index().hits(
            [("all", [LONG[0]]), ("some", [" ".join(text[2:16])]), ("tiny", [TINY[0]])]
        )
    }
    assert found["all"].share == found["tiny"].share == 1
    assert found["some"].share == pytest.approx(2 / (len(text) - 12))
    assert found["some"].shared == " ".join(text[2:15])
    assert found["tiny"].shared == TINY[0]


def test_what_many_items_have_is_their_template():
    ask = " ".join(prose(20))
    few = Index(Item("few", [f"{ask} {' '.join(prose(20))}"]) for _ in range(10))
    many = Index(Item("many", [f"{ask} {' '.join(prose(20))}"]) for _ in range(11))
    assert len(list(few.hits([("x", [ask])]))) == 10
    assert list(many.hits([("x", [ask])])) == []


@pytest.mark.parametrize(
    "row",
    [
        "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
        "na na na na na na na na na na na na na na hey",
        "42",
        "...",
    ],
)
def test_numbers_and_repetition_are_no_evidence(row):
    assert list(Index([Item("b:1", [row])]).hits([("x", [row])])) == []


def test_texts_too_short_to_count_beside_longer_ones():
    items = [Item("b:1", [LONG[0], "the red one"]), Item("b:2", ["what is love"])]
    examples = [("label", ["the red one"]), ("question", ["What is love?"])]
    assert [hit.where for hit in Index(items).hits(examples)] == ["question"]
    medium = " ".join(prose(5))
    items = [Item("b:1", [LONG[0], medium]), Item("b:2", ["love"])]
    examples = [("x", [medium]), ("y", ["love"])]
    assert [hit.where for hit in Index(items).hits(examples)] == ["x"]


def test_nothing_in_nothing():
    assert list(Index([]).hits([("x", ["a"])])) == []
    assert list(index().hits([])) == []
    assert list(index().hits([("x", [])])) == []


def test_the_texts_of_a_record():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert record_texts(Record("1", turns, "f:1")) == ["a", "b"]
    assert record_texts(Record("1", [], "f:1", text="abc")) == ["abc"]


@pytest.fixture
def folder(tmp_path):
    with gzip.open(tmp_path / "deep.jsonl.gz", "wt") as file:
        nested = {"id": 1, "question": {"stem": LONG[0], "choices": [{"text": SHORT[0]}]}}
        file.write(json.dumps(nested) + "\n\n" + json.dumps({"n": 3}) + "\n")
    (tmp_path / "flat.jsonl").write_text(json.dumps({"q": LONG[1]}) + "\n" + json.dumps("x") + "\n")
    (tmp_path / "README.md").write_text("notes")
    return tmp_path


def test_benchmark_files(folder):
    found = Benchmarks(f"{folder}, {folder / 'flat.jsonl'}")
    assert found.names == ["deep", "flat"]
    examples = [("x", [LONG[1]]), ("y", ["no"]), ("z", ["hi", SHORT[0]]), ("z", [LONG[0]])]
    hits = list(found.index.hits(examples))
    assert [(hit.example, found.name(hit.item)) for hit in hits] == [
        (0, "flat"),
        (2, "deep"),
        (3, "deep"),
    ]
    assert found.index.where[hits[0].item] == f"{folder}/flat.jsonl:1"
    assert found.contaminated(examples).tolist() == [0, 2, 3]
    assert found.contaminated([]).tolist() == []
    before = found.digest()
    (folder / "flat.jsonl").write_text("{}\n")
    assert Benchmarks(str(folder)).digest() != before


def test_bad_benchmark_files(folder):
    with pytest.raises(UserError, match=r"data.benchmarks: no/such does not exist"):
        Benchmarks("no/such")
    (folder / "flat.jsonl").write_text("{}\n{")
    with pytest.raises(UserError, match=r"flat.jsonl:2: not valid JSON"):
        Benchmarks(str(folder)).index  # noqa: B018
    (folder / "more").mkdir()
    (folder / "more" / "deep.jsonl").write_text("{}")
    with pytest.raises(UserError, match="have the same name"):
        Benchmarks(f"{folder},{folder / 'more'}")
