import json
import os
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
    none = {"truncated": 0, "dropped": 0, "unsupervised": 0}
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
