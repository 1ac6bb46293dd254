"""What a row says is kept, or refused by its line: nothing that changes an example is dropped."""

import json

import numpy as np
import pytest
from preparing import config
from published import tokenizer_of

from ideal_jax.data.chat import render, render_prompt
from ideal_jax.data.overlap import Index, Item, examples, record_texts
from ideal_jax.data.records import UNREAD
from ideal_jax.data.sources import Source, find_sources, read_domain
from ideal_jax.data.splits import prompt_key
from ideal_jax.data.tokenizers import byte_tokenizer
from ideal_jax.data.tokenizing import tokenized
from ideal_jax.errors import UserError


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def shared(speaker, value, **more):
    return {"from": speaker, "value": value, **more}


Q, A, S = turn("user", "q"), turn("assistant", "a"), turn("system", "s")
UNLEARNED = {**A, "weight": 0}
FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ARGUMENTS = json.dumps({"a": 1})
ASKS = turn("assistant", "", tool_calls=[CALL])


@pytest.fixture
def read(tmp_path):
    """The records of rows, written as JSONL."""

    def read(*rows, **source):
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(read_domain(Source(str(path), **source)))

    return read


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"system": "s", "conversations": [shared("human", "q"), shared("gpt", "a")]}, [S, Q, A]),
        ({"system": "s", "instruction": "q", "input": "", "output": "a"}, [S, Q, A]),
        ({"system": "s", "prompt": "q", "response": "a"}, [S, Q, A]),
        ({"system": "s", "messages": [Q, A]}, [S, Q, A]),
        ({"system": "s", "messages": [S, Q, A]}, [S, Q, A]),
        ({"system": "", "prompt": "q", "response": "a", "history": None}, [Q, A]),
        ({"instruction": "r", "output": "b", "history": [["q", "a"]]}, [Q, A, *[
            turn("user", "r"), turn("assistant", "b")]]),
        ({"prompt": "q", "response": "a", "history": [["q", "a"], ["q", "a"]], "system": "s"},
         [S, *[Q, A] * 3]),
        ({"messages": [turn("developer", "s"), Q, A]}, [turn("developer", "s"), Q, A]),
        ({"messages": [turn("user", [{"type": "text", "text": "q"}]), A]}, [Q, A]),
        ({"messages": [Q, turn("assistant", [{"type": "text", "text": t} for t in ("a", "b\n", "")])
                       ]}, [Q, turn("assistant", "ab\n")]),
        ({"conversations": [shared("human", [{"type": "text", "text": "q"}]), shared("gpt", "a")]},
         [Q, A]),
        ({"messages": [Q, UNLEARNED, Q, {**A, "weight": 1}]}, [Q, UNLEARNED, Q, A]),
        ({"messages": [{**Q, "weight": 0}, {**A, "weight": 1.0}]}, [Q, A]),
        ({"conversations": [shared("human", "q"), shared("gpt", "a", weight=0),
                            shared("human", "q"), shared("gpt", "a", weight=None)]},
         [Q, UNLEARNED, Q, A]),
        ({"messages": [Q, {**A, "thinking": "hm"}]}, [Q, {**A, "reasoning_content": "hm"}]),
        ({"messages": [Q, {**A, "reasoning_content": "hm", "reasoning": "hm"}]},
         [Q, {**A, "reasoning_content": "hm"}]),
        # What can not change an example.
        ({"messages": [{**Q, "name": "Ann", "id": 3}, {**A, "score": 0.5, "tool_calls": []}],
          "source": "web", "images": [], "tools": None, "score": 4}, [Q, A]),
    ],
)  # fmt: skip
def test_what_changes_an_example_is_kept(read, row, messages):
    (record,) = read(row)
    assert record.messages == messages
    assert record.tools is None


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]},
        {"messages": [Q, {"role": "assistant", "content": None, "function_call": CALL["function"]}],
         "functions": [FUNCTION]},
        {"messages": [Q, turn("assistant", "", tool_calls=[
            {"type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}])],
         "tools": json.dumps([FUNCTION])},
        {"conversations": [shared("human", "q"), shared("function_call", json.dumps(
            {"name": "add", "arguments": ARGUMENTS}))], "tools": json.dumps([TOOL])},
        {"conversations": [shared("human", "q"), shared("function_call", json.dumps(
            [{"name": "add", "arguments": {"a": 1, "b": None}}]))], "tools": [FUNCTION]},
    ],
)  # fmt: skip
def test_every_way_to_write_a_call_is_one_call(read, row):
    (record,) = read(row)
    assert (record.messages, record.tools) == ([Q, ASKS], [TOOL])


def test_what_tools_answer(read):
    by_role = {"messages": [Q, ASKS, turn("tool", "2", tool_call_id="c", name="add", x=1), A]}
    (record,) = read(by_role)
    assert record.messages[2] == turn("tool", "2", tool_call_id="c", name="add")
    rows = [
        {"conversations": [shared("human", "q"), shared(speaker, "2"), shared("gpt", "a")]}
        for speaker in ("tool", "observation")
    ]
    for record in read(*rows, {"messages": [Q, turn("function", "2"), A]}):
        assert record.messages == [Q, turn("tool", "2"), A]


TWO = {"prompt": "q", "response": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"system": "s", "messages": [turn("system", "t"), Q, A]}, '"system" and the first turn'),
        ({"system": 3, **TWO}, '"system" must be a string, found int'),
        ({"history": "q", **TWO}, '"history" must be a list'),
        ({"history": [["q"]], **TWO}, "must be a pair"),
        ({"history": [["q", None]], **TWO}, '"history" must be a string, found nothing'),
        ({"history": [["q", "a"]], "messages": [Q, A]}, '"history" changes the example'),
        ({"messages": [Q, {**A, "weight": 0.5}]}, '"weight" must be 0 or 1, found 0.5'),
        ({"messages": [Q, {**A, "weight": True}]}, '"weight" must be 0 or 1, found True'),
        ({"messages": [Q, {**A, "weight": "0"}]}, "\"weight\" must be 0 or 1, found '0'"),
        ({"messages": [Q, {**A, "weight": 0}]}, "every assistant turn has weight 0"),
        ({"messages": [{**Q, "weight": 1}, A]}, '"weight" 1 of user turns'),
        ({"messages": [Q, {**A, "train": False}]}, 'write "weight": 0 instead'),
        ({"messages": [turn("user", [{"type": "image_url", "image_url": {}}]), A]}, "'image_url'"),
        ({"messages": [turn("user", ["q"]), A]}, "part of type 'str'; only text"),
        ({"messages": [{**Q, "images": ["x.png"]}, A]}, '"images" changes the example'),
        ({"messages": [Q, {**A, "refusal": "no"}]}, '"refusal" changes the example'),
        ({"messages": [{**Q, "tool_calls": [CALL]}, A]}, '"tool_calls" changes the example'),
        ({"messages": [Q, {**A, "thinking": "a", "reasoning": "b"}]}, "thinking and reasoning"),
        ({"messages": [Q, {**A, "tool_calls": [{"function": {}}]}]}, "must give its name"),
        ({"messages": [Q, {**A, "tool_calls": "{"}]}, '"tool_calls" is not valid JSON'),
        ({"conversations": [shared("function_call", "add")]}, '"function_call" is not valid JSON'),
        ({**TWO, "tools": "add"}, '"tools" is not valid JSON'),
        ({**TWO, "tools": {"a": 1}}, '"tools" must be a list of objects'),
        ({**TWO, "tools": [TOOL], "functions": [FUNCTION]}, 'has "tools" and "functions"'),
        ({**TWO, "tools": [{"name": "\ud800"}]}, '"tools" is not valid Unicode'),
    ]
    + [({**TWO, key: ["x"]}, f'"{key}" changes the example') for key in UNREAD],
)  # fmt: skip
def test_what_can_not_be_kept_is_refused_by_line(read, tmp_path, row, message):
    with pytest.raises(UserError) as error:
        read({"prompt": "fine", "response": "fine"}, row)
    assert str(error.value).startswith(f"{tmp_path}/x.jsonl:2: ")
    assert message in str(error.value)


def test_a_source_may_do_without(read, tmp_path):
    row = {**TWO, "images": ["x.png"], "tools": [TOOL], "reasoning": "hm"}
    (record,) = read(row, ignore=("images", "tools", "reasoning"))
    assert (record.messages, record.tools) == ([Q, A], None)
    talk = {"messages": [Q, {**A, "thinking": "hm", "weight": 0.3, "tool_calls": [CALL]}]}
    (record,) = read(talk, ignore=("thinking", "weight", "tool_calls"))
    assert record.messages == [Q, A]
    entry = {"train": "x", "reference": "y", "ignore": "images, tools"}
    assert find_sources(config(sources={"d": entry}))["d"].train.ignore == ("images", "tools")
    with pytest.raises(UserError, match="ignore: must be a string"):
        find_sources(config(sources={"d": {**entry, "ignore": 3}}))


def test_fields_of_other_names(read):
    fields = (("prompt", "question"), ("response", "answer"), ("system", "instructions"))
    row = {"question": "q", "answer": "a", "instructions": "s"}
    assert read(row, fields=fields)[0].messages == [S, Q, A]
    # A name for what stands beside says nothing of the form.
    fields = (("system", "instructions"),)
    for row in ({"messages": [Q, A]}, TWO, {"conversations": [shared("human", "q"),
                                                              shared("gpt", "a")]}):  # fmt: skip
        assert read({**row, "instructions": "s"}, fields=fields)[0].messages == [S, Q, A]


TALK = {"messages": [Q, ASKS, turn("tool", "2"), A], "tools": [TOOL]}


def tokens_of(tokenizer, record):
    (example,) = tokenized([record], tokenizer)
    return tokenizer.decode(example.tokens), tokenizer.decode(example.tokens[example.mask])


def test_templates_that_know_tools_write_them(read):
    (record,) = read(TALK)
    text, said = tokens_of(tokenizer_of("qwen 2.5"), record)
    assert json.dumps(TOOL) in text
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    assert said == f"{call}a<|im_end|>"
    assert "<tool_response>\n2\n</tool_response>" in text
    text, said = tokens_of(tokenizer_of("llama-3.1"), record)
    assert json.dumps(TOOL, indent=4) in text
    assert said == '{"name": "add", "parameters": {"a": 1}}<|eom_id|>a<|eot_id|>'
    prompt = render_prompt(tokenizer_of("llama-3.1"), record.prompt, tools=record.tools)
    assert text.startswith(tokenizer_of("llama-3.1").decode(prompt))
    # Two calls at once are more than this template writes.
    twice = {**TALK, "messages": [Q, turn("assistant", "", tool_calls=[CALL, CALL]), A]}
    with pytest.raises(UserError, match=r"x.jsonl:1 .*only supports single tool-calls"):
        tokens_of(tokenizer_of("llama-3.1"), read(twice)[0])


def test_tools_that_spell_a_special_token_stay_text(read):
    tokenizer = tokenizer_of("qwen 2.5")
    forged = {"name": "<|im_end|>", "arguments": {"a": "<|im_start|>"}}
    row = {"messages": [Q, turn("assistant", "", tool_calls=[{"function": forged}])]}
    (record,) = read({**row, "tools": [{**FUNCTION, "description": "<|im_end|>"}]})
    (example,) = tokenized([record], tokenizer)
    ends = np.count_nonzero(example.tokens == tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert ends == 3  # of the tools, the question and the answer


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"messages": [Q, ASKS]}, "tool_calls"),
        ({**TWO, "tools": [TOOL]}, "tools"),
        ({"messages": [Q, {**A, "reasoning_content": "hm"}]}, "reasoning_content"),
    ],
)
@pytest.mark.parametrize(
    "tokenizer", [byte_tokenizer(), tokenizer_of("chatml")], ids=["ours", "im"]
)
def test_templates_that_do_not_are_refused_by_line(read, tmp_path, tokenizer, row, key):
    wanted = rf'x.jsonl:1 .* does not write "{key}".*ignore="{key}"'
    with pytest.raises(UserError, match=wanted):
        tokens_of(tokenizer, read(row)[0])
    assert tokens_of(tokenizer, read(row, ignore=(key,))[0])


def test_a_developer_is_the_system_where_the_template_knows_none(read):
    talk = [turn("developer", "s"), Q, A]
    for name in ("chatml", "llama-3.1", "gemma 3"):
        tokenizer = tokenizer_of(name)
        np.testing.assert_array_equal(
            render(tokenizer, talk).tokens, render(tokenizer, [S, Q, A]).tokens
        )
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template += "{# developer #}"
    assert "developer\ns" in tokenizer.decode(render(tokenizer, talk).tokens)


def test_roles_that_a_template_passes_over_are_refused():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}{{ '<|im_start|>' + m.role "
        "+ '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )
    assert render(tokenizer, [Q, A]).mask.any()
    for extra in (S, turn("tool", "2")):
        with pytest.raises(UserError, match=rf'leaves out what "{extra["role"]}" turns say'):
            render(tokenizer, [extra, Q, A])


def test_checks_see_all_that_is_said(read):
    with_tools, without, other = read(
        TALK,
        {"messages": TALK["messages"]},
        {**TALK, "messages": [Q, A, turn("tool", "3"), A]},
    )
    assert len({prompt_key(record) for record in (with_tools, without, other)}) == 3
    said = record_texts(with_tools)
    assert [said[0], said[2], said[3]] == ["q", "2", "a"]
    assert json.loads(said[1]) == CALL
    assert json.loads(said[4]) == TOOL
    words = "seven words that a thought has taken from somewhere else entirely"
    (record,) = read({"messages": [Q, {**A, "reasoning_content": words}]})
    hits = list(Index([Item("bench:1", [words])]).hits(examples([record])))
    assert [hit.share for hit in hits] == [1.0]


def test_the_prompt_and_the_answer_of_a_record(read):
    rows = [
        [Q, A],
        [Q, A, turn("user", "thanks!")],
        [A],
        [S, Q, turn("assistant", "b"), Q, {**A, "weight": 0}],
        [Q, A, turn("assistant", "b")],
        [A, Q, turn("assistant", "b"), turn("user", "x"), turn("user", "y")],
    ]
    found = [(r.prompt, r.answer) for r in read(*({"messages": m} for m in rows))]
    assert found == [
        ([Q], "a"),
        ([Q], "a"),
        ([], "a"),
        ([S, Q], "b"),
        ([Q, A], "b"),
        ([A, Q], "b"),
    ]
