"""What is prepared: stores, records and tokenizers from built-in and own data; mistakes by name."""

import json

import numpy as np
import pytest
from preparing import SYNTHETIC, config

from ideal_jax.data import generic_store, render, render_prompt
from ideal_jax.data.prepare import SPLITS, prepare
from ideal_jax.errors import UserError


def test_built_in_data(tmp_path):
    data = prepare(config(), tmp_path, seed=0)
    assert data.names == ("math", "code", "reason", "instr", "trust")
    assert [len(data.train[name]) for name in data.names] == [30, 40, 30, 30, 40]
    assert {len(data.reference[name]) for name in data.names} == {8}
    assert {len(data.test[name]) for name in data.names} == {12}
    assert len(data.tokenizer) == 261
    again = prepare(config(), tmp_path / "again", seed=0)
    other = prepare(config(), tmp_path / "other", seed=1)
    assert again.digest == data.digest != other.digest


def test_own_data(root, tmp_path):
    data = prepare(config(root=str(root)), tmp_path / "data", seed=0)
    assert data.names == ("a", "b")
    assert [len(data.train[name]) for name in "ab"] == [15, 15]
    assert [len(data.test[name]) for name in "ab"] == [4, 4]
    none = {"contaminated": 0, "truncated": 0, "dropped": 0, "unsupervised": 0}
    assert data.left_out["a"] == {"overlapping": 1, **none}
    prompts = [
        {record.prompt[0]["content"] for record in data.records("a", split)} for split in SPLITS
    ]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
    assert prepare(config(root=str(root), domains="b"), tmp_path / "b", 0).names == ("b",)


@pytest.mark.parametrize("split", SPLITS)
def test_records_are_in_the_order_of_the_store(root, tmp_path, split):
    # In 16 tokens some of domain a's answers are cut away, so its stores skip records.
    data = prepare(config(root=str(root), row_length=15), tmp_path / "data", seed=0)
    assert data.left_out["a"]["unsupervised"] > 0
    for name in data.names:
        store, records = getattr(data, split)[name], data.records(name, split)
        assert [record.id for record in records] == [store.id(i) for i in range(len(store))]
        assert len(records) == len(store)
        for (tokens, mask), record in zip(store, records, strict=True):
            rendered = render(data.tokenizer, record.messages)
            np.testing.assert_array_equal(tokens, rendered.tokens[:16])
            np.testing.assert_array_equal(mask, rendered.mask[:16])
            prompt = render_prompt(data.tokenizer, record.prompt)
            np.testing.assert_array_equal(tokens[: len(prompt)], prompt)
            assert record.answer.startswith(data.tokenizer.decode(tokens[mask])[:4])


def test_only_the_last_turn_may_be_supervised(tmp_path):
    turns = [("user", "a"), ("assistant", "bb"), ("user", "c"), ("assistant", "dddd")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "raw" / "x").mkdir(parents=True)
    for part, system in (("train", "one"), ("reference", "two")):
        line = {"messages": [{"role": "system", "content": system}, *messages]}
        (tmp_path / "raw" / "x" / f"{part}.jsonl").write_text(json.dumps(line) + "\n")
    options = {"root": str(tmp_path / "raw"), "test_examples": 0}
    both = prepare(config(**options), tmp_path / "all", seed=0)
    last = prepare(config(**options, supervise="last"), tmp_path / "last", seed=0)
    assert both.train["x"].supervised.tolist() == [len("bb") + 1 + len("dddd") + 1]
    assert last.train["x"].supervised.tolist() == [len("dddd") + 1]
    with pytest.raises(UserError, match=r'data.supervise: "last" -> "all"'):
        prepare(config(**options), tmp_path / "last", seed=0)


@pytest.mark.parametrize("reference_given", [True, False])
@pytest.mark.parametrize("test_given", [True, False])
def test_sets_that_are_not_given_are_cut_from_train(tmp_path, reference_given, test_given):
    def line(text):
        return json.dumps({"prompt": text, "response": "r"}) + "\n"

    folder = tmp_path / "raw" / "x"
    folder.mkdir(parents=True)
    lines = [line(f"say {i % 90}") for i in range(110)]
    (folder / "train.jsonl").write_text("".join(lines))
    for part, given in (("reference", reference_given), ("test", test_given)):
        if given:
            (folder / f"{part}.jsonl").write_text("".join(line(f"{part} {i}") for i in range(4)))
    options = {"root": str(tmp_path / "raw"), "reference_examples": 7, "test_examples": 50}
    data = prepare(config(**options), tmp_path / "data", seed=0)
    sizes = {part: len(getattr(data, part)["x"]) for part in SPLITS}
    expected = {"reference": 4 if reference_given else 7, "test": 4 if test_given else 11}
    cut = {
        part: {"held_out": expected[part], "eligible": 110, "wanted": wanted}
        for part, wanted, given in (("reference", 7, reference_given), ("test", 50, test_given))
        if not given
    }
    held_out = sum(counts["held_out"] for counts in cut.values())
    assert data.cut == {"x": cut}
    assert sizes == {"train": 110 - held_out, **expected}
    prompts = [{r.prompt[0]["content"] for r in data.records("x", part)} for part in SPLITS]
    assert len(set.union(*prompts)) == sum(map(len, prompts))
    # The order of the file changes nothing but the order.
    (folder / "train.jsonl").write_text("".join(reversed(lines)))
    again = prepare(config(**options), tmp_path / "again", seed=0)
    assert prompts == [{r.prompt[0]["content"] for r in again.records("x", p)} for p in SPLITS]
    with pytest.raises(UserError, match=r"data.reference_examples: 7 -> 8"):
        prepare(config(**{**options, "reference_examples": 8}), tmp_path / "data", seed=0)


def test_contaminated_train_examples_can_be_left_out(root, tmp_path):
    leak = "seven words that a benchmark asks for"
    with (root / "a" / "train.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"id": f"leak{i}", "prompt": f"{i}", "response": text}) + "\n"
            for i, text in enumerate([leak, leak.upper() + "!", f"{leak} not"])
        )
    benchmark = tmp_path / "bench.jsonl"
    benchmark.write_text(json.dumps({"question": leak}) + "\n")
    options = {"root": str(root), "test_examples": 0, "benchmarks": str(benchmark)}
    data = prepare(config(**options), tmp_path / "with", seed=0)
    clean = prepare(config(**options, decontaminate=True), tmp_path / "without", seed=0)
    assert len(data.train["a"]) == 22
    assert [data.left_out[name]["contaminated"] for name in "ab"] == [0, 0]
    assert [clean.left_out[name]["contaminated"] for name in "ab"] == [2, 0]
    ids, left = ([r.id for r in found.records("a", "train")] for found in (data, clean))
    assert left == [i for i in ids if i not in ("leak0", "leak1")]
    assert len(clean.train["a"]) == len(left)
    assert clean.train["b"].digest == data.train["b"].digest
    # Only what was left out binds a folder to its benchmarks.
    benchmark.rename(tmp_path / "moved.jsonl")
    options["benchmarks"] = str(tmp_path / "moved.jsonl")
    assert prepare(config(**options), tmp_path / "with", seed=0).digest == data.digest
    with pytest.raises(UserError, match=r"data.decontaminate: .*bench.jsonl.* -> .*moved.jsonl"):
        prepare(config(**options, decontaminate=True), tmp_path / "without", seed=0)


def test_when_everything_is_contaminated(root, tmp_path):
    (tmp_path / "bench.jsonl").write_text("".join(f'{{"q": "Say {i}!"}}\n' for i in range(20)))
    options = {"root": str(root), "benchmarks": str(tmp_path / "bench.jsonl")}
    with pytest.raises(UserError, match=r"b/train.jsonl: no example is left .* 15 contaminated"):
        prepare(config(**options, domains="b", decontaminate=True), tmp_path / "x", 0)


def test_trained_and_local_tokenizers(root, tmp_path):
    bpe = prepare(config(root=str(root), tokenizer="bpe:280"), tmp_path / "bpe", seed=0)
    assert 261 < len(bpe.tokenizer) <= 280
    local = config(root=str(root), tokenizer=str(tmp_path / "bpe" / "tokenizer"))
    assert prepare(local, tmp_path / "local", seed=0).digest == bpe.digest


def test_progress_is_told(tmp_path):
    said = []
    options = config(cache=str(tmp_path / "cache"))
    prepare(options, tmp_path / "data", seed=0, progress=lambda *a: said.append(a))
    total = 170 + 5 * (8 + 12)
    assert ("read math", 30, None) in said
    assert ("tokenize", 0, total) in said
    assert said[-1] == ("tokenize", total, total)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"root": "/no/such"}, "data.root /no/such does not exist"),
        ({"domains": "maths"}, r"did you mean math\?"),
        ({"supervise": "first"}, "data.supervise='first' is not one of all, last"),
        ({"decontaminate": True}, r"data.decontaminate needs data.benchmarks"),
        ({"benchmarks": "/no/such", "decontaminate": True}, "data.benchmarks: /no/such does not"),
        ({"reference_examples": 3}, "data.reference_examples=3: must be at least 4"),
        ({"row_length": 0}, "data.row_length=0: must be at least 1"),
        ({"synthetic": {**SYNTHETIC, "counts": "1,2"}}, "2 values for 5 domains"),
        ({"synthetic": {**SYNTHETIC, "counts": "1,2,3,4,0"}}, "every one must be at least 1"),
        ({"synthetic": {**SYNTHETIC, "noise": 40}}, r"noise=40: must be in \[0, 1\]"),
        ({"synthetic": {**SYNTHETIC, "test": 0}}, "data.synthetic.test"),
        ({"tokenizer": "bpe:12"}, "expected auto, byte, bpe:<size> or a folder"),
        ({"tokenizer": "bpe:many"}, "expected auto, byte, bpe:<size> or a folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, changed, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(config(**changed), tmp_path / "data", seed=0)
    assert "\n" not in str(error.value)


def test_an_unusable_example_is_named(root, tmp_path):
    data = prepare(config(root=str(root)), tmp_path / "data", seed=0)
    data.tokenizer.chat_template = "{{ raise_exception('no') }}"
    data.tokenizer.save_pretrained(tmp_path / "refuses")
    with pytest.raises(UserError, match=r"a/train.jsonl:\d+ \(id train\d+\): the chat template"):
        prepare(config(root=str(root), tokenizer=str(tmp_path / "refuses")), tmp_path / "x", seed=0)


def test_the_base_has_its_own_store(tmp_path):
    data = prepare(config(), tmp_path, seed=0)
    store = generic_store(data, 50, 0, 64)
    assert len(store) == 50
    assert generic_store(data, 50, 0, 64).digest == store.digest
    assert data.tokenizer.decode(store[0][0]).startswith("<|user|>")


def test_long_conversations_are_cut_or_left_out(root, tmp_path):
    cut = prepare(config(root=str(root), row_length=30), tmp_path / "cut", seed=0)
    left = prepare(
        config(root=str(root), row_length=30, overlong="drop"), tmp_path / "left", seed=0
    )
    assert cut.left_out["a"]["truncated"] == left.left_out["a"]["dropped"] > 0
    assert (cut.left_out["a"]["dropped"], left.left_out["a"]["truncated"]) == (0, 0)
    assert len(left.train["a"]) < len(cut.train["a"])
    assert max(left.train["a"].lengths) <= 31
    assert left.left_out["b"] == cut.left_out["b"]


def test_texts_are_cut_into_pieces_that_lose_nothing(tmp_path):
    (tmp_path / "raw" / "t").mkdir(parents=True)
    texts = ["x" * n for n in (1, 15, 16, 17, 40)] + ["<|end|>" + "y" * 20, "é" * 9]
    for part, mark in (("train", ""), ("reference", "r"), ("test", "s")):
        lines = [json.dumps({"text": mark + text}) + "\n" for text in texts]
        (tmp_path / "raw" / "t" / f"{part}.jsonl").write_text("".join(lines))
    data = prepare(config(root=str(tmp_path / "raw"), row_length=16), tmp_path / "data", seed=0)
    store, records = data.train["t"], data.records("t", "train")
    assert data.left_out["t"] == dict.fromkeys(
        ("overlapping", "contaminated", "truncated", "dropped", "unsupervised"), 0
    )
    assert store.lengths.max() == 17
    np.testing.assert_array_equal(store.supervised, store.lengths - 1)
    whole = {}
    for item, (record, (tokens, mask)) in enumerate(zip(records, store, strict=True)):
        assert mask.all()
        assert store.id(item) == record.id
        begun = whole.setdefault(record.text, [])
        assert begun[-1:] == ([tokens[0]] if begun else [])
        begun += tokens.tolist() if not begun else tokens[1:].tolist()
    assert list(whole) == texts
    end = data.tokenizer.eos_token_id
    for text, tokens in whole.items():
        assert tokens.pop() == end
        assert end not in tokens
        assert data.tokenizer.decode(tokens) == text


def test_a_text_begins_as_the_tokenizer_says(tmp_path):
    from tokenizers.processors import TemplateProcessing

    from ideal_jax.data.records import Record
    from ideal_jax.data.tokenizers import byte_tokenizer
    from ideal_jax.data.tokenizing import tokenized

    tokenizer = byte_tokenizer()
    text = [Record("1", [], "f:1", "ab")]
    assert len(next(tokenized(text, tokenizer)).tokens) == 3
    tokenizer.bos_token = "<|user|>"
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", begin)]
    )
    tokens = next(tokenized(text, tokenizer)).tokens.tolist()
    assert (tokens[0], len(tokens), tokens[-1]) == (begin, 4, tokenizer.eos_token_id)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no eos_token"):
        list(tokenized(text, tokenizer))
