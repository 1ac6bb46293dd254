"""What exact match asks, expects and shows, whoever speaks last. A model that has learned the data
by heart is played by the data itself."""

import io
import types

import numpy as np
import pytest
from published import tokenizer_of

from ideal_jax.data import Record, render
from ideal_jax.data.tokenizers import byte_tokenizer
from ideal_jax.runs import evaluate_run

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"function": {"name": "f", "arguments": {}}}
THANKS = {"role": "user", "content": "thanks 0!"}


def turns(*contents, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[k % 2], "content": text} for k, text in enumerate(contents)]


@pytest.fixture
def measure(monkeypatch):
    """(tasks, samples, what was printed) for test conversations under a tokenizer."""

    def measure(talks, tokenizer=None):
        tokenizer = tokenizer or byte_tokenizer()
        records = [Record(str(k), talk, f"f:{k}") for k, talk in enumerate(talks)]

        def by_heart(generate, mesh, params, prompts, **options):
            known = [render(tokenizer, record.messages, "last") for record in records]
            for number, prompt in enumerate(prompts):
                # What follows the prompt in training, up to the token that generation stops at.
                (after,) = {
                    tuple(tokens[len(prompt) : len(tokens)][mask[len(prompt) :]])
                    for tokens, mask in known
                    if len(tokens) > len(prompt) and (tokens[: len(prompt)] == prompt).all()
                    if mask.argmax() == len(prompt)
                }
                assert after.count(options["end_id"]) == 1
                yield number, np.asarray(after[: after.index(options["end_id"])])

        monkeypatch.setattr(evaluate_run, "generate_all", by_heart)
        told = io.StringIO()
        session = types.SimpleNamespace(
            config=types.SimpleNamespace(
                eval=types.SimpleNamespace(examples=99, batch_size=4, max_new_tokens=8)
            ),
            data=types.SimpleNamespace(tokenizer=tokenizer, records=lambda *_: records),
            reporter=types.SimpleNamespace(say=lambda text: print(text, file=told)),
            mesh=None,
            widths=(64,),
            rows=lambda wanted: wanted,
        )
        tasks, samples, _ = evaluate_run._exact_match(session, None, None, "d")
        return tasks, samples, told.getvalue()

    return measure


@pytest.mark.parametrize(
    "talk",
    [
        turns("one", "answer"),
        turns("one", "answer", "thanks 0!"),
        turns("zero", "no", "one", "answer", "thanks 0!"),
        [{"role": "system", "content": "s"}, *turns("one", "answer"), THANKS, THANKS],
        [*turns("one", "answer"), THANKS, {**A, "weight": 0}],
        turns("welcome", "one", "answer", first="assistant"),
    ],
)
def test_the_answer_is_the_last_that_is_learned(measure, talk):
    (task,), samples, told = measure([talk, turns("other", "else")])
    shown = {key: samples[0][key] for key in ("prompt", "reference", "generated")}
    assert shown == {"prompt": "one", "reference": "answer", "generated": "answer"}
    assert (task["value"], task["n"], told) == (1.0, 2, "")


def test_conversations_without_a_prompt_are_told_and_left_out(measure):
    alone = [turns("welcome", first="assistant"), turns("hello", "q?", first="assistant")]
    calls = [[Q, {**A, "tool_calls": [CALL]}]]
    talks = [*alone, *calls, turns("b", "c"), turns("d", "e")]
    (task,), samples, told = measure(talks, tokenizer_of("qwen 2.5"))
    assert (task["n"], task["value"]) == (2, 1.0)
    assert [sample["prompt"] for sample in samples] == ["b", "d"]
    assert "d: 3 of 5 test conversations have no prompt to answer in words" in told
    tasks, samples, told = measure([*alone, turns("b", "c")])
    assert (tasks, samples) == ([], [])
    assert "2 of 3" in told
    assert measure([]) == ([], [], "")


@pytest.mark.parametrize("name", ["qwen 3", "deepseek-r1 distill", "glm-4", "mistral v3", "phi-3"])
def test_published_templates_can_be_answered(measure, name):
    """Whatever a template writes around an answer, a model that knows it all scores 1."""
    (task,), samples, _ = measure(
        [turns("one", "answer"), turns("two", "an\n\nother ")], tokenizer_of(name)
    )
    assert task["value"] == 1.0
    assert samples[0]["reference"].endswith("answer")
