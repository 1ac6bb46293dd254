"""Whatever a file holds: an example, or one line that names the row. Never anything else."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideal_jax.data.records import FIELDS, Record
from ideal_jax.data.sources import read_domain
from ideal_jax.data.splits import prompt_key
from ideal_jax.data.store import TokenStore
from ideal_jax.data.tokenizers import byte_tokenizer
from ideal_jax.data.tokenizing import tokenized
from ideal_jax.errors import UserError

BYTE = byte_tokenizer()
TURN_KEYS = ["role", "content", "from", "value", "weight", "type", "text", "function", "name"]
KEYS = st.sampled_from([*FIELDS, *TURN_KEYS, "arguments", "other", ""])
ROLES = ["user", "assistant", "system", "tool", "developer", "human", "gpt", "function_call"]
WORDS = st.sampled_from([*ROLES, "<|end|>", "\ud800", "é\0", '{"name": "f"}', "[]", '"\\ud800"'])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": SCALARS}), max_size=2)
CALLS = st.lists(st.fixed_dictionaries({"name": SCALARS, "arguments": SCALARS}), max_size=2)
MORE = {"weight": SCALARS, "tool_calls": CALLS | SCALARS, "thinking": SCALARS, "name": SCALARS}
TURN = st.fixed_dictionaries(
    {"role": SCALARS, "content": SCALARS | PARTS}, optional=MORE
) | st.fixed_dictionaries({"from": SCALARS, "value": SCALARS | PARTS}, optional=MORE)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(TURN, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)
ROWS = st.dictionaries(KEYS, VALUES, max_size=5)


def check(path, rows):
    """Every row gives a usable record or an error of its own."""
    refused = []
    if rows == 0:
        with pytest.raises(UserError, match=rf"^{path} holds no examples$"):
            list(read_domain(path))
        return
    records = list(read_domain(path, refused.append))
    assert len(records) + len(refused) == rows
    for error in refused:
        assert isinstance(error, UserError)
        assert re.match(rf"{re.escape(str(path))}:[1-9]\d*: ", str(error))
        assert "\n" not in str(error)
        str(error).encode()
    for record in records:
        assert isinstance(record, Record)
        assert re.fullmatch(rf"{re.escape(str(path))}:[1-9]\d*", record.where)
        assert 0 <= prompt_key(record) < 2**64
        json.dumps(vars(record), ensure_ascii=False).encode()
        turns = [turn.keys() for turn in record.messages]
        if record.tools or any(keys & {"tool_calls", "reasoning_content"} for keys in turns):
            with pytest.raises(UserError, match=r"(?s):[1-9]\d* \(id .*does not write"):
                list(tokenized([record], BYTE))
            continue
        (example,) = tokenized([record], BYTE)
        assert len(example.tokens) == len(example.mask)
        assert example.id.encode().decode() == record.id


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(ROWS | VALUES, max_size=4))
def test_any_json(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("f") / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(path, len(rows))


@settings(deadline=None, max_examples=100)
@given(lines=st.lists(st.binary(max_size=12) | ROWS.map(lambda row: json.dumps(row).encode()[:-3])))
def test_any_bytes(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("f") / "x.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    check(path, sum(bool(line.strip()) for line in content.split(b"\n")))
    for name in ("x.jsonl.gz", "x.parquet"):
        other = path.with_name(name)
        other.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{other}(:1: not readable| holds no)"):
            list(read_domain(other))


def test_a_deeply_nested_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("[" * 100_000 + "\n" + '{"text": "a", "id": ' + "9" * 5000 + "}\n")
    check(path, 2)


def column(count):
    """Arrow arrays of ``count`` rows: of one type, or text that is no Unicode."""

    def array(values):
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            return pa.array([str(v).encode("utf-8", "replace").decode() for v in values])

    def several(values):
        return st.lists(values, min_size=count, max_size=count)

    raw = st.binary(max_size=4)
    dates = several(st.integers(-(2**62), 2**62) | st.none())
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    return st.one_of(
        several(texts | st.none()).map(array),
        several(raw).map(lambda values: pa.array(values, pa.binary()).view(pa.string())),
        several(raw | st.none()).map(array),
        dates.map(lambda values: pa.array(values, pa.timestamp("us"))),
        several(st.integers(0, 9) | st.none()).map(array),
        several(st.lists(TURN, max_size=2) | st.none()).map(array),
        several(st.fixed_dictionaries({"role": st.lists(texts), "content": st.lists(texts)})).map(
            array
        ),
    )


@st.composite
def tables(draw):
    count = draw(st.integers(0, 4))
    names = draw(st.lists(KEYS, unique=True, min_size=1, max_size=4))
    return pa.table({name: draw(column(count)) for name in names})


@settings(deadline=None, max_examples=200)
@given(table=tables())
def test_any_table(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("f") / "x.parquet"
    pa.parquet.write_table(table, path)
    check(path, table.num_rows)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), max_size=12), longest=st.integers(2, 12))
def test_pieces_hold_every_target_once(tmp_path_factory, lengths, longest):
    texts = [Record(str(i), [], "f:1", "x" * n) for i, n in enumerate(lengths)]
    store = TokenStore.write(
        tmp_path_factory.mktemp("f") / "s", tokenized(texts, BYTE, first=7), longest
    )
    assert store.supervised.sum() == sum(lengths)
    assert store.lengths.max(initial=0) <= longest
    targets = np.bincount(store.kept - 7, store.supervised, minlength=len(lengths))
    assert targets.tolist() == lengths
