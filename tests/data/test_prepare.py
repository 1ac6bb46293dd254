import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from ideal_jax.data import generic_store, render, render_prompt
from ideal_jax.data.prepare import SPLITS, prepare
from ideal_jax.errors import UserError

SYNTHETIC = {"counts": "30,40,30,30,40", "noise": 0.4, "reference": 8, "test": 12}


def config(**changed):
    base = {
        "root": "",
        "domains": "",
        "tokenizer": "byte",
        "supervise": "all",
        "benchmarks": "",
        "decontaminate": False,
        "row_length": 64,
        "max_segments": 8,
        "window": 32,
        "test_examples": 5,
        "sources": {},
        "overlong": "truncate",
        "workers": 0,
        "cache": "",
        "synthetic": SYNTHETIC,
    }
    return ConfigDict({**base, **changed})


def write_domain(root, name, prompts):
    (root / name).mkdir(parents=True)
    for split, texts in (("train", prompts), ("reference", ["ref 0", "ref 1", prompts[0]])):
        lines = [{"id": f"{split}{i}", "prompt": t, "response": t} for i, t in enumerate(texts)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / name / f"{split}.jsonl").write_text(text)


@pytest.fixture
def root(tmp_path):
    write_domain(tmp_path / "raw", "b", [f"say {i}" for i in range(20)])
    write_domain(tmp_path / "raw", "a", [f"word {i} " + "long " * (i % 3) for i in range(20)])
    return tmp_path / "raw"


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
    assert [len(data.train[name]) for name in "ab"] == [14, 14]
    assert [len(data.test[name]) for name in "ab"] == [5, 5]
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
    with pytest.raises(UserError, match=r"b/train.jsonl: no example is left .* 14 contaminated"):
        prepare(config(**options, domains="b", decontaminate=True), tmp_path / "x", 0)


def test_trained_and_local_tokenizers(root, tmp_path):
    bpe = prepare(config(root=str(root), tokenizer="bpe:280"), tmp_path / "bpe", seed=0)
    assert 261 < len(bpe.tokenizer) <= 280
    local = config(root=str(root), tokenizer=str(tmp_path / "bpe" / "tokenizer"))
    assert prepare(local, tmp_path / "local", seed=0).digest == bpe.digest


def test_a_second_call_only_opens(root, tmp_path):
    first = prepare(config(root=str(root)), tmp_path / "data", seed=0)
    for path in root.rglob("*.jsonl"):
        path.unlink()
    said = []
    # Rows and batches are made later, and the seed does not touch real data.
    changed = config(root=str(root), window=99, max_segments=3)
    again = prepare(changed, tmp_path / "data", seed=1, progress=lambda *a: said.append(a))
    assert again.digest == first.digest
    assert said == []


def test_progress_is_told(tmp_path):
    said = []
    options = config(cache=str(tmp_path / "cache"))
    prepare(options, tmp_path / "data", seed=0, progress=lambda *a: said.append(a))
    total = 170 + 5 * (8 + 12)
    assert ("read math", 30, None) in said
    assert ("tokenize", 0, total) in said
    assert said[-1] == ("tokenize", total, total)


def test_a_killed_preparation_continues(tmp_path):
    counts = {**SYNTHETIC, "counts": "600,1200,600,600,1200"}
    options = {"synthetic": counts, "tokenizer": "bpe:270"}
    options["cache"] = str(tmp_path / "other")
    whole = prepare(config(**options), tmp_path / "whole", seed=0)
    options["cache"] = str(tmp_path / "cache")
    target = tmp_path / "killed"
    program = (
        "import sys, time\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_prepare import config, prepare\n"
        f"prepare(config(**{options!r}), {str(target)!r}, 0, lambda *a: time.sleep(0.05))\n"
    )
    for landmark in ("killed/tokenizer", "cache/tokens/*/train/00000"):
        child = subprocess.Popen([sys.executable, "-c", program])
        while not list(tmp_path.glob(landmark)) and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not (target / "dataset.json").exists()
    chunk = next(tmp_path.glob("cache/tokens/*/train/00000"))
    before = (chunk / "index.npz").stat().st_mtime_ns
    assert prepare(config(**options), target, seed=0).digest == whole.digest
    assert (chunk / "index.npz").stat().st_mtime_ns == before
    assert not [*tmp_path.rglob("*.partial"), *tmp_path.rglob(".scratch*")]


def test_other_settings_are_refused_once_prepared(tmp_path):
    prepare(config(), tmp_path, seed=0)
    with pytest.raises(UserError, match=r"data.row_length: 64 -> 32.*another work directory"):
        prepare(config(row_length=32), tmp_path, seed=0)
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        prepare(config(), tmp_path, seed=1)


def test_a_mended_mistake_needs_no_new_folder(root, tmp_path):
    target = tmp_path / "data"
    with pytest.raises(UserError, match="no example is left"):
        prepare(config(root=str(root), test_examples=100), target, seed=0)
    with pytest.raises(UserError, match="no/such"):
        prepare(config(root=str(root), tokenizer="no/such"), target, seed=0)
    with pytest.raises(UserError, match=r"data.row_length=4.*raise"):
        prepare(config(root=str(root), row_length=4), target, seed=0)
    mended = prepare(config(root=str(root)), target, seed=0)
    assert mended.digest == prepare(config(root=str(root)), tmp_path / "new", seed=0).digest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"root": "/no/such"}, "data.root /no/such does not exist"),
        ({"domains": "maths"}, r"did you mean math\?"),
        ({"supervise": "first"}, "data.supervise='first' is not one of all, last"),
        ({"decontaminate": True}, r"data.decontaminate needs data.benchmarks"),
        ({"benchmarks": "/no/such", "decontaminate": True}, "data.benchmarks: /no/such does not"),
        ({"row_length": 0}, "data.row_length=0: must be at least 1"),
        ({"synthetic": {**SYNTHETIC, "counts": "1,2"}}, "2 values for 5 domains"),
        ({"synthetic": {**SYNTHETIC, "counts": "1,2,3,4,0"}}, "at least one example"),
        ({"synthetic": {**SYNTHETIC, "noise": 40}}, r"noise=40: must be in 0\.\.1"),
        ({"synthetic": {**SYNTHETIC, "test": 0}}, "data.synthetic.test"),
        ({"tokenizer": "bpe:12"}, "at least 261"),
        ({"tokenizer": "bpe:many"}, "does not exist"),
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


MANY = {**SYNTHETIC, "counts": "30,9000,30,30,9000"}


def test_processes_do_not_change_the_result(tmp_path):
    here, there = (
        prepare(
            config(synthetic=MANY, workers=workers, cache=str(tmp_path / f"cache{workers}")),
            tmp_path / f"data{workers}",
            seed=0,
        )
        for workers in (0, 2)
    )
    assert here.digest == there.digest
    for file in sorted((tmp_path / "cache0").rglob("*.jsonl")):
        twin = tmp_path / "cache2" / file.relative_to(tmp_path / "cache0")
        assert twin.read_bytes() == file.read_bytes()
    store = there.train["code"]
    assert len(store.parts) == 3
    np.testing.assert_array_equal(store.kept, np.arange(9000))
    for item in (0, 4095, 4096, 8999, -1):
        np.testing.assert_array_equal(store[item][0], here.train["code"][item][0])
        assert store.id(item) == there.records("code", "train")[item].id


def test_the_cache_is_shared_and_may_be_deleted(root, tmp_path):
    cache = tmp_path / "cache"
    options = config(root=str(root), tokenizer="bpe:280", cache=str(cache))
    first = prepare(options, tmp_path / "one", seed=0)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    # Another run, and another place with the same content: nothing is made again.
    shutil.copytree(root, tmp_path / "elsewhere" / "raw")
    options.root = str(tmp_path / "elsewhere" / "raw")
    assert prepare(options, tmp_path / "two", seed=0).digest == first.digest
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in files.items() if p.name != ".lock"
    }
    options.root = str(root)
    shutil.rmtree(cache)
    again = prepare(options, tmp_path / "one", seed=0)
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.train["a"][3][0], again.train["a"][3][0])
    shutil.rmtree(cache)
    with (root / "a" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "new", "response": "new"}) + "\n")
    with pytest.raises(UserError, match=r"no longer has this run's data, and its sources have"):
        prepare(options, tmp_path / "one", seed=0)


@pytest.mark.parametrize(
    "changed", [{"overlong": "drop"}, {"row_length": 99}, {"tokenizer": "bpe:270"}]
)
def test_what_decides_tokens_is_made_apart(root, tmp_path, changed):
    cache = str(tmp_path / "cache")
    prepare(config(root=str(root), cache=cache), tmp_path / "one", seed=0)
    before = set((tmp_path / "cache" / "tokens").iterdir())
    prepare(config(root=str(root), cache=cache, **changed), tmp_path / "two", seed=0)
    assert len(set((tmp_path / "cache" / "tokens").iterdir()) - before) == 2
    assert len(list((tmp_path / "cache" / "records").iterdir())) == 2


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


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGINT, signal.default_int_handler)
from test_prepare import MANY, config, prepare
def told(name, done, total):
    print(name, done, total, flush=True)
try:
    prepare(config(synthetic=MANY, workers=2, cache={cache!r}), {data!r}, 0, told)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_nobody_outlives_an_interrupted_preparation(tmp_path, sent):
    cache = tmp_path / "cache"
    program = PROGRAM.format(
        tests=os.path.dirname(__file__), cache=str(cache), data=str(tmp_path / "data")
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in child.stdout:
        if line.startswith("tokenize 0 "):
            break
    workers = _children(child.pid)
    deadline = time.monotonic() + 30
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = _children(child.pid)
    assert len(workers) == 2
    os.killpg(child.pid, sent)
    out, error = child.communicate(timeout=30)
    assert error == ""
    assert ("interrupted" in out) == (sent == signal.SIGINT)
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))
    options = config(synthetic=MANY, workers=2, cache=str(cache))
    data = prepare(options, tmp_path / "data", seed=0)
    assert len(data.train["trust"]) == 9000
    assert not list(cache.rglob(".scratch*"))


def _children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
