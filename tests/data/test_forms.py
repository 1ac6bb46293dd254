"""Every kind of source and every form of a row, mixed in one config."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from ml_collections import ConfigDict
from test_prepare import config

from ideal_jax import config as config_lib
from ideal_jax.data.prepare import prepare
from ideal_jax.data.sources import Source, find_sources, read_domain
from ideal_jax.errors import UserError

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARED = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "q"},
    {"from": "gpt", "value": "a"},
]

# Writes questions and answers as a TFDS data set of ArrayRecord files and prints its folder.
TFDS = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "question": tfds.features.Text(), "answer": tfds.features.Text(),
            "messages": tfds.features.Sequence(turn), "score": tfds.features.Scalar(np.float32)}))
    def _split_generators(self, manager):
        return {"train": self._generate_examples(12), "held": self._generate_examples(4, 90)}
    def _generate_examples(self, count, first=0):
        for i in range(first, first + count):
            talk = [{"role": "user", "content": f"é{i}"}, {"role": "assistant", "content": "y"}]
            yield i, {"question": f"é{i}", "answer": f"{i}", "messages": talk, "score": 0.5}

Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path, *rows, columns=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows)) if columns is None else pa.table(columns)
    pa.parquet.write_table(table, path)
    return path


def pairs(count, first=0, ours=("prompt", "response")):
    return [dict(zip(ours, (f"q{i}", f"a{i}"), strict=True)) for i in range(first, first + count)]


def said(source):
    return [record.messages for record in read_domain(source)]


def test_every_form_is_recognised(tmp_path):
    path = jsonl(
        tmp_path / "x.jsonl",
        {"messages": TALK},
        {"prompt": "q", "response": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"conversations": SHARED[1:]},
        {"conversations": SHARED},
        {"text": "once upon"},
    )
    *talks, text = read_domain(path)
    assert [talk.messages for talk in talks[:4]] == [TALK] * 4
    assert talks[4].messages == [{"role": "system", "content": "s"}, *TALK]
    assert (text.text, text.messages, {talk.text for talk in talks}) == ("once upon", [], {None})


def test_fields_and_form_say_what_is_meant(tmp_path):
    row = {"messages": TALK, "text": "t", "question": "x", "answer": "y"}
    path = str(jsonl(tmp_path / "x.jsonl", row))
    assert said(Source(path)) == [TALK]
    mapped = Source(path, fields=(("prompt", "question"), ("response", "answer")))
    (record,) = read_domain(mapped)
    assert (record.prompt[0]["content"], record.answer) == ("x", "y")
    assert next(read_domain(Source(path, form="text"))).text == "t"
    (record,) = read_domain(Source(path, fields=(("id", "question"),)))
    assert (record.id, record.messages) == ("x", TALK)
    with pytest.raises(UserError, match=r'x.jsonl:1: needs "prompt" and "response"; it has'):
        said(Source(path, fields=(("prompt", "question"), ("response", "anser"))))


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"from": "robot", "value": "x"}, '"from" must be one of human, gpt, system'),
        ({"from": ["gpt"], "value": "x"}, '"from" must be one of human'),
        ({"from": "gpt"}, '"value" must be a string, found nothing'),
    ],
)
def test_bad_turns_of_sharegpt(tmp_path, turn, message):
    path = jsonl(tmp_path / "x.jsonl", {"conversations": SHARED}, {"conversations": [turn]})
    with pytest.raises(UserError, match=f"^{path}:2: ") as error:
        said(path)
    assert message in str(error.value)


def test_a_folder_of_parts_is_one_set(tmp_path):
    parquet(tmp_path / "train" / "b.parquet", *pairs(2, 1))
    jsonl(tmp_path / "train" / "a.jsonl", *pairs(1))
    (tmp_path / "train" / "notes.txt").write_text("not data")
    records = list(read_domain(tmp_path / "train"))
    assert [record.answer for record in records] == ["a0", "a1", "a2"]
    assert [record.id for record in records] == [
        "train/a.jsonl:1",
        "train/b.parquet:1",
        "train/b.parquet:2",
    ]
    assert records[2].where == f"{tmp_path}/train/b.parquet:2"


def test_the_layout_has_parquet_and_folders(tmp_path):
    parquet(tmp_path / "math" / "train" / "0.parquet", *pairs(9))
    parquet(tmp_path / "math" / "reference.parquet", *pairs(4, 20))
    options = config(root=str(tmp_path), test_examples=3)
    data = prepare(options, tmp_path / "data", seed=0)
    assert [len(data.train["math"]), len(data.reference["math"]), len(data.test["math"])] == [
        7,
        4,
        2,
    ]


def test_rows_of_parquet(tmp_path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    mixed = [
        {"messages": talk, "prompt": None, "response": None, "text": None},
        {"prompt": "q", "response": "a"},
        {"text": "t"},
    ]
    records = list(read_domain(parquet(tmp_path / "x.parquet", *mixed)))
    assert [record.messages for record in records] == [TALK, TALK, []]
    by_column = {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}
    assert said(parquet(tmp_path / "y.parquet", by_column)) == [TALK]
    late = {"prompt": ["q"], "response": ["a"], "when": pa.array([2**60], pa.timestamp("us"))}
    assert said(parquet(tmp_path / "z.parquet", columns=late)) == [TALK]


def test_a_bad_row_of_parquet_is_named_and_the_others_are_read(tmp_path):
    broken = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    path = parquet(tmp_path / "x.parquet", columns={"prompt": ["1", "2", "3"], "response": broken})
    refused = []
    assert [record.answer for record in read_domain(path, refused.append)] == ["a", "c"]
    assert [str(error).split(": ")[0] for error in refused] == [f"{path}:2"]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"x.parquet:1: not readable as Parquet"):
        list(read_domain(path))
    empty = parquet(tmp_path / "e.parquet", columns={"text": pa.array([], pa.string())})
    with pytest.raises(UserError, match=r"e.parquet holds no examples"):
        list(read_domain(empty))


def test_saved_datasets(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(pairs(3, ours=("question", "answer")))
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=rows.select([2])).save_to_disk(tmp_path / "two")
    fields = (("prompt", "question"), ("response", "answer"))
    one = list(read_domain(Source(f"hf:{tmp_path}/one", fields=fields)))
    assert [record.answer for record in one] == ["a0", "a1", "a2"]
    assert one[2].where == f"hf:{tmp_path}/one:3"
    (two,) = read_domain(Source(f"hf:{tmp_path}/two@test", fields=fields))
    assert two.answer == "a2"
    for spec, message in (
        ("two", "add one of @train, @test"),
        ("two@x", "add one of"),
        ("one@train", "leave out"),
    ):
        with pytest.raises(UserError, match=message):
            Source(f"hf:{tmp_path}/{spec}").open()
    with pytest.raises(UserError, match=rf"^{tmp_path}/one holds no .*written hf:"):
        Source(f"{tmp_path}/one").open()


def test_sets_of_one_part_need_no_name_and_give_all_three_sets(tmp_path, tfds_folder):
    import datasets

    rows = datasets.Dataset.from_list(pairs(80))
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "hub")
    tiny = tmp_path / "tiny" / "1.0.0"
    shutil.copytree(tfds_folder / "tiny" / "1.0.0", tiny)
    info = json.loads((tiny / "dataset_info.json").read_text())
    info["splits"] = [part for part in info["splits"] if part["name"] == "train"]
    (tiny / "dataset_info.json").write_text(json.dumps(info))
    sources = {"hub": {"train": f"hf:{tmp_path}/hub"}}
    data = prepare(config(sources=sources), tmp_path / "data", seed=0)
    assert [len(sets["hub"]) for sets in (data.train, data.reference, data.test)] == [70, 5, 5]
    assert Source(f"tfds:{tiny}").open().digest() == Source(f"tfds:{tiny}@train").open().digest()


def test_a_hub_that_can_not_be_reached_is_one_line(tmp_path):
    program = "from ideal_jax.data.sources import Source; Source('hf:no/such:main@train').open()"
    away = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    child = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | away, capture_output=True, text=True
    )
    assert child.stderr.splitlines()[-1].startswith("ideal_jax.errors.UserError: hf:no/such:main@")


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "tiny.py").write_text(TFDS)
    subprocess.run([sys.executable, folder / "tiny.py", folder], check=True, capture_output=True)
    return folder


def test_tensorflow_datasets_without_tensorflow(tfds_folder):
    fields = (("prompt", "question"), ("response", "answer"))
    by_name = Source("tfds:tiny@train", fields=fields, data_dir=str(tfds_folder))
    by_folder = Source(f"tfds:{tfds_folder}/tiny/1.0.0@train", fields=fields)
    assert said(by_name) == said(by_folder)
    assert len(said(by_name)) == 12
    first = next(read_domain(by_folder))
    assert first.prompt[0]["content"] == f"é{first.answer}"
    talk = said(Source(f"tfds:{tfds_folder}/tiny/1.0.0@held"))
    assert {turns[1]["content"] for turns in talk} == {"y"}
    assert "tensorflow" not in sys.modules
    for spec, message in (
        ("nosuch@train", "nosuch"),
        ("tiny@nosuch", "nosuch"),
        ("tiny", "@train, @held"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Source(f"tfds:{spec}", data_dir=str(tfds_folder)).open()
        assert "\n" not in str(error.value)


CONFIG = """
from ideal_jax.config import load
def get_config():
    c = load({base!r})
    c.data.root = {root!r}
    c.data.sources.table = {{"train": {table!r}, "reference": {table!r}, "test": {table!r}}}
    c.data.sources.hub = {{"train": {hub!r}, "reference": {hub!r}}}
    c.data.sources.hub.fields = {{"prompt": "question", "response": "answer"}}
    c.data.sources.tf = {{"train": "tfds:tiny@train", "reference": "tfds:tiny@held"}}
    c.data.sources.tf.update(data_dir={tfds!r}, form="messages")
    c.data.sources.base = {{"train": {text!r}, "reference": {text!r}, "test": {text!r}}}
    return c
"""


@pytest.fixture
def mixed(tmp_path, tfds_folder):
    """A config file whose five domains come from everywhere, their train and reference distinct."""
    import datasets

    for part, first in (("train", 0), ("reference", 90)):
        jsonl(tmp_path / "root" / "lines" / f"{part}.jsonl", *pairs(12, first))
        parquet(tmp_path / "table" / f"{part}.parquet", *pairs(12, first))
        jsonl(
            tmp_path / "text" / f"{part}.jsonl", *({"text": f"{part} {i} " * 9} for i in range(12))
        )
        rows = datasets.Dataset.from_list(pairs(12, first, ("question", "answer")))
        rows.save_to_disk(tmp_path / "hub" / part)
    text = CONFIG.format(
        base=str(Path(__file__).parents[2] / "configs" / "tiny.py"),
        root=str(tmp_path / "root"),
        table=str(tmp_path / "table" / "PART.parquet"),
        hub=f"hf:{tmp_path}/hub/PART",
        tfds=str(tfds_folder),
        text=str(tmp_path / "text" / "PART.jsonl"),
    )
    for part in ("train", "reference"):
        text = "\n".join(
            line.replace("PART", part, 1) if "PART" in line else line for line in text.split("\n")
        )
    path = tmp_path / "config.py"
    path.write_text(text.replace("PART", "reference"))
    return path


def test_all_kinds_in_one_config(mixed, tmp_path):
    found = config_lib.load(mixed)
    found.data.update(tokenizer="byte", test_examples=4, cache=str(tmp_path / "cache"))
    data = prepare(found.data, tmp_path / "data", seed=0)
    assert data.names == ("base", "hub", "lines", "table", "tf")
    assert [len(data.train[name]) for name in data.names[1:]] == [9, 9, 12, 9]
    assert list(find_sources(found.data)) == list(data.names)
    # Every piece of the texts is an example, and nothing of them is lost.
    records, store = data.records("base", "train"), data.train["base"]
    assert len(store) == len(records) > 12
    assert {record.text for record in records} == {f"train {i} " * 9 for i in range(12)}
    assert store.supervised.sum() == sum(len(f"train {i} " * 9) for i in range(12))
    found.data.sources.tf.form = "text"
    with pytest.raises(UserError, match=r'data.sources.tf.form: "messages" -> "text"'):
        prepare(found.data, tmp_path / "data", seed=0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"reference": "x"}, "data.sources.d.train is missing"),
        ({"train": "x", "reference": "y", "tset": "z"}, r"tset: unknown key \(did you mean test"),
        ({"train": "x", "reference": 3}, "reference: must be a string, found int"),
        ({"train": "x", "reference": "y", "form": "chat"}, "form='chat' is not one of messages"),
        ({"train": "x", "reference": "y", "fields": "q"}, "fields: must be a section"),
        ({"train": "x", "reference": "y", "fields": {"promt": "q"}}, r"promt: unknown key.*prompt"),
        ("x", "data.sources.d: must be a section"),
    ],
)
def test_a_wrong_declaration_is_named(entry, message):
    with pytest.raises(UserError, match=message):
        find_sources(config(sources={"d": entry}))


def test_domains_choose_among_all(tmp_path):
    for name in ("a", "b"):
        jsonl(tmp_path / name / "train.jsonl", *pairs(1))
        jsonl(tmp_path / name / "reference.jsonl", *pairs(1))
    entry = {"train": "x", "reference": "y"}
    both = {"root": str(tmp_path), "sources": {"c": entry}}
    assert list(find_sources(config(**both))) == ["a", "b", "c"]
    assert list(find_sources(config(**both, domains="c,a"))) == ["c", "a"]
    assert list(find_sources(config(sources={"c": entry}))) == ["c"]
    for changed, message in (
        ({**both, "domains": "d"}, 'holds no domain "d"'),
        ({**both, "domains": "c,c"}, 'names "c" twice'),
        ({**both, "sources": {"a": entry}}, "holds a domain of this name too"),
        ({"sources": {"c": entry}, "domains": "a"}, 'data.sources holds no domain "a"'),
    ):
        with pytest.raises(UserError, match=message):
            find_sources(ConfigDict(config(**changed)))
