"""What is learned, what ends it and what is asked, under the formats that models are published
with."""

import datetime
import unittest.mock

import numpy as np
import pytest
from published import MODELS, tokenizer_of

from ideal_jax.data.chat import end_of_turn, ending, render, render_prompt
from ideal_jax.data.spans import Turns, turns_of
from ideal_jax.data.templates import template_of
from ideal_jax.errors import UserError

ONE = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
TALK = [
    *ONE,
    {"role": "user", "content": "And 3 × 3?"},
    {"role": "assistant", "content": "Neun:\n\n九 🙂"},
]
SYSTEM = [{"role": "system", "content": "Be short."}, *TALK]
TALKS = [
    pytest.param(name, talk, id=f"{name}-{label}")
    for name, model in MODELS.items()
    for label, talk in (("one", ONE), ("two", TALK), ("system", SYSTEM))
    if (model.earlier or talk is ONE) and (model.system or talk is not SYSTEM)
]


def runs(tokenizer, tokens, mask):
    """The text of every unbroken run of supervised tokens."""
    edges = np.flatnonzero(np.diff([0, *mask.astype(int), 0]))
    return [tokenizer.decode(tokens[a:b]) for a, b in edges.reshape(-1, 2)]


def learned(name, talk):
    model = MODELS[name]
    turns = [m["content"] for m in talk if m["role"] == "assistant"]
    return [model.lead + said + model.between + model.stop for said in turns]


@pytest.mark.parametrize(("name", "talk"), TALKS)
def test_every_answer_and_its_end_are_learned(name, talk):
    tokenizer = tokenizer_of(name)
    tokens, mask = render(tokenizer, talk)
    found = [text.rstrip("\n") for text in runs(tokenizer, tokens, mask)]
    wanted = learned(name, talk)
    if name == "vicuna":  # only the last answer is closed, and not by the template
        wanted = [text.removesuffix("</s>") for text in wanted[:-1]] + wanted[-1:]
    assert found == wanted
    last = render(tokenizer, talk, "last")
    np.testing.assert_array_equal(last.tokens, tokens)
    assert [t.rstrip("\n") for t in runs(tokenizer, last.tokens, last.mask)] == wanted[-1:]


@pytest.mark.parametrize(("name", "talk"), TALKS)
def test_the_tokens_are_the_templates(name, talk):
    tokenizer = tokenizer_of(name)
    tokens, _ = render(tokenizer, talk)
    day = datetime.datetime(2024, 7, 26)
    with unittest.mock.patch("transformers.utils.chat_template_utils.datetime") as clock:
        clock.now.return_value = day
        expected = tokenizer.apply_chat_template(talk, return_dict=False)
    closed = ending(tokenizer).told is not None and MODELS[name].stop != "<|im_end|>"
    assert tokens.tolist() == expected + [end_of_turn(tokenizer)] * closed


@pytest.mark.parametrize(("name", "talk"), TALKS)
def test_generation_starts_where_training_does_and_stops_at_what_it_taught(name, talk):
    tokenizer = tokenizer_of(name)
    tokens, mask = render(tokenizer, talk, "last")
    prompt = render_prompt(tokenizer, talk[:-1])
    np.testing.assert_array_equal(prompt, tokens[: len(prompt)])
    if name != "smollm 3":  # its block begins before the prompt ends
        assert len(prompt) == mask.argmax()
    stop = end_of_turn(tokenizer)
    assert tokenizer.convert_ids_to_tokens(stop) == MODELS[name].stop
    # A model that has learned the answer stops at its end, and not before.
    answer = tokens[len(prompt) :][mask[len(prompt) :]].tolist()
    assert answer.index(stop) >= len(answer) - 2


@pytest.mark.parametrize("name", ["llama-3.1", "mistral small", "smollm 3", "granite 3"])
def test_no_template_knows_the_day(name):
    tokenizer = tokenizer_of(name)
    with unittest.mock.patch("transformers.utils.chat_template_utils.datetime") as clock:
        clock.now.side_effect = AssertionError("asked for the day")
        text = tokenizer.decode(render(tokenizer, ONE).tokens)
        prompt = tokenizer.decode(render_prompt(tokenizer, ONE[:1]))
    days = ("26 Jul 2024", "2024-07-26", "26 July 2024", "July 26, 2024")
    assert any(day in text for day in days)
    assert any(day in prompt for day in days)


def test_the_fixed_day_is_written_as_asked():
    directives = "%Y %m %d %B %b %A %a %H:%M:%S %y %j %I %p %F"
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = f"{{{{ strftime_now('{directives}') }}}}" + tokenizer.chat_template
    written = tokenizer.decode(render(tokenizer, ONE).tokens)
    assert written.startswith(datetime.datetime(2024, 7, 26).strftime(directives) + "<|im_start|>")


@pytest.mark.parametrize("name", ["mistral v1", "mistral v3", "gemma 2"])
def test_what_a_template_can_not_write_is_refused_by_line(name):
    with pytest.raises(UserError, match=r"^messages: "):
        render(tokenizer_of(name), SYSTEM)


def test_a_system_turn_that_moves_is_refused_where_all_turns_count():
    tokenizer = tokenizer_of("mistral v3")
    # It is written before an answer only, and gone from a conversation that is over.
    with pytest.raises(UserError, match=r'leaves out what "system" turns say'):
        render(tokenizer, SYSTEM, "last")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "if loop.last and first",
        "if first and m == (turns | selectattr('role', 'eq', 'user') | list)[-1]",
    )
    with pytest.raises(UserError, match=r"rewrites earlier turns.*, or try data.supervise=last"):
        render(tokenizer, SYSTEM)
    tokens, mask = render(tokenizer, SYSTEM, "last")
    assert "[INST] Be short.\n\nAnd 3" in tokenizer.decode(tokens)
    assert runs(tokenizer, tokens, mask) == learned("mistral v3", TALK)[-1:]
    with pytest.raises(UserError) as error:
        render(tokenizer, [*SYSTEM, {"role": "user", "content": "Thanks!"}], "last")
    assert "supervise" not in str(error.value)


def test_thoughts_of_earlier_turns():
    tokenizer = tokenizer_of("qwen 3")
    with pytest.raises(UserError, match=r"rewrites earlier turns.*data.supervise=last"):
        render(tokenizer, TALK)
    assert runs(tokenizer, *render(tokenizer, TALK, "last")) == learned("qwen 3", TALK)[-1:]
    thought = [ONE[0], {**ONE[1], "reasoning_content": "2 and 2"}]
    wanted = "<think>\n2 and 2\n</think>\n\nIt is 4.<|im_end|>"
    assert runs(tokenizer, *render(tokenizer, thought)) == [wanted]
    thought = [ONE[0], {**ONE[1], "content": "<think>\n2 and 2\n</think>\n\nIt is 4."}]
    assert runs(tokenizer, *render(tokenizer, thought)) == [wanted]


WHITE = ["", " ", "\n", " a", "a ", "\n\na\n", "\ta\t b\n"]
ODD = [
    *WHITE,
    "<think>x</think>y",
    "</think>",
    "<table>",
    "<|im_end|>",
    "</s>",
    "a<|end|>\n",
    "assistant\n",
    " USER: b",
]


@pytest.mark.parametrize("name", MODELS)
def test_marks_find_what_prefixes_find(name):
    """One rendering with marks, or two for every turn: the same spans, or the same refusal."""
    template = template_of(tokenizer_of(name))
    if template.has_blocks:
        pytest.skip("says itself what the assistant says")
    by_marks, by_prefix = turns_of(template), Turns(template)
    by_prefix._by_marks = lambda talk, text: None
    generator = np.random.default_rng(0)
    used = 0
    for number in range(24):
        texts = [f"{number} words"] * 3 + ODD[: len(ODD) * (number % 3) // 2 or None]
        system = [{"role": "system", "content": "s"}] * (number % 2)
        count = int(generator.integers(2, 11))
        said = [str(generator.choice(texts)) for _ in range(count)]
        roles = ("user", "assistant")
        talk = [{"role": roles[k % 2], "content": text} for k, text in enumerate(said)]
        talk = (system + talk)[number % 7 == 6 :]
        turns = [k for k, m in enumerate(talk) if m["role"] == "assistant"]
        if not turns:
            continue
        found = []
        for finder in (by_marks, by_prefix):
            try:
                found.append(finder.text_and_spans(template.talk(talk, learned=turns)))
            except UserError as error:
                found.append(str(error))
        assert found[0] == found[1], talk
        if not isinstance(found[0], str):
            plain = [{"role": m["role"], "content": "plain"} for m in talk]
            given = template.talk(plain, learned=turns)
            used += by_marks._by_marks(given, template.text(given)) is not None
    assert used or not MODELS[name].earlier


def test_long_conversations_take_time_in_proportion():
    """Renderings are counted: they are what takes the time."""
    tokenizer = tokenizer_of("llama-3.1")
    template = template_of(tokenizer)
    render(tokenizer, TALK)
    counted = []
    plain = type(template).text

    def counting(self, talk, **options):
        counted.append(len(talk.messages))
        return plain(self, talk, **options)

    with unittest.mock.patch.object(type(template), "text", counting):
        for exchanges in (20, 200):
            counted.clear()
            tokens, mask = render(tokenizer, ONE * exchanges)
            assert len(runs(tokenizer, tokens, mask)) == exchanges
            # A short one of every shape is looked at once; the whole twice.
            assert sum(counted) <= 4 * exchanges + 100
