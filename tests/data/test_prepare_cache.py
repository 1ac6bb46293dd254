"""What was prepared is found again, shared, and survives kills and interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from preparing import MANY, SYNTHETIC, config

from ideal_jax.data.prepare import prepare
from ideal_jax.errors import UserError


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
        "from ideal_jax.data.prepare import prepare\n"
        "from preparing import config\n"
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
    (root / "a" / "reference.jsonl").rename(root / "kept.jsonl")
    (root / "a" / "train.jsonl").rename(root / "more.jsonl")
    (root / "a" / "train.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    with pytest.raises(UserError, match="of 1 examples only 0 can be held out as a reference set"):
        prepare(config(root=str(root), test_examples=100), target, seed=0)
    (root / "kept.jsonl").rename(root / "a" / "reference.jsonl")
    (root / "more.jsonl").rename(root / "a" / "train.jsonl")
    with pytest.raises(UserError, match="no/such"):
        prepare(config(root=str(root), tokenizer="no/such"), target, seed=0)
    with pytest.raises(UserError, match=r"data.row_length=4.*raise"):
        prepare(config(root=str(root), row_length=4), target, seed=0)
    mended = prepare(config(root=str(root)), target, seed=0)
    assert mended.digest == prepare(config(root=str(root)), tmp_path / "new", seed=0).digest


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


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGINT, signal.default_int_handler)
from ideal_jax.data.prepare import prepare
from preparing import MANY, config
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
