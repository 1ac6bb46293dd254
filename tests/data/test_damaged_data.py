"""Damaged data of a run or of the cache is made again from its sources, and said."""

import json
import shutil

import damaging
import numpy as np
import pytest
from preparing import config, write_domain

from ideal_jax.data import generic_store
from ideal_jax.data.prepare import prepare
from ideal_jax.data.store import TokenStore
from ideal_jax.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(options, folder, digest) of prepared data with a tokenizer of its own."""
    place = tmp_path_factory.mktemp("made")
    write_domain(place / "raw", "a", [f"say {i}" for i in range(20)])
    options = config(root=str(place / "raw"), tokenizer="bpe:270", cache=str(place / "cache"))
    return options, place, prepare(options, place / "data", seed=0).digest


def contents(place):
    return {
        path.relative_to(place): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("damage", damaging.BYTES)
def test_every_file_is_made_again(made, tmp_path, capsys, damage):
    options, place, digest = made
    shutil.copytree(place, tmp_path / "p")
    options = config(**{**options.to_dict(), "cache": str(tmp_path / "p" / "cache")})
    before = contents(place)
    looked_at = 0
    for file in before:
        # A chunk's own index is of no use once the chunks are one store.
        chunk = file.parent.name.isdecimal() and file.suffix != ".array_record"
        trained = file.parts[:2] == ("cache", "tokenizers")
        if file.parts[0] == "raw" or chunk or trained:
            continue
        looked_at += 1
        damage(tmp_path / "p" / file)
        again = prepare(options, tmp_path / "p" / "data", seed=0)
        out = capsys.readouterr().out
        assert "is damaged: " in out, file
        assert again.digest == digest
        assert len(again.train["a"]) == len(list(again.train["a"]))
        prepare(options, tmp_path / "p" / "data", seed=0)
        assert capsys.readouterr().out == "", file
    assert looked_at > 12
    after = contents(tmp_path / "p")
    assert [file for file in before if file.suffix != ".npz" and before[file] != after[file]] == [
        file for file in before if "summary.json" in file.name and before[file] != after[file]
    ]


def test_a_damaged_cache_is_no_use_to_another_run(made, tmp_path, capsys):
    options, place, digest = made
    shutil.copytree(place / "cache", tmp_path / "cache")
    options = config(**{**options.to_dict(), "cache": str(tmp_path / "cache")})
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file() and file.name in ("tokenizer.json", "train.jsonl", "index.npz"):
            damaging.flip(file)
    assert prepare(options, tmp_path / "data", seed=0).digest == digest
    assert capsys.readouterr().out.count("is damaged: it is made again") >= 3


def test_other_sources_are_no_replacement(tmp_path):
    write_domain(tmp_path / "raw", "a", [f"say {i}" for i in range(20)])
    options = config(root=str(tmp_path / "raw"), cache=str(tmp_path / "cache"))
    prepare(options, tmp_path / "data", seed=0)
    damaging.flip(next((tmp_path / "cache" / "tokens").rglob("*.array_record")))
    with (tmp_path / "raw" / "a" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "new", "response": "new"}) + "\n")
    with pytest.raises(UserError, match="no longer has this run's data"):
        prepare(options, tmp_path / "data", seed=0)


@pytest.mark.parametrize("damage", damaging.BYTES)
def test_the_text_of_the_base(tmp_path, capsys, damage):
    data = prepare(config(), tmp_path / "data", seed=0)
    before = generic_store(data, 20, 0, 64)
    for name in ("examples.array_record", "index.npz", "summary.json"):
        damage(before.path / name)
        assert not TokenStore.is_whole(before.path)
        again = generic_store(data, 20, 0, 64)
        assert again.digest == before.digest
        np.testing.assert_array_equal(again[7][0], list(again)[7][0])
        assert "tokens" in capsys.readouterr().out
