"""What a chat template says of the assistant's turns itself, how it ends them, and how it fails."""

from typing import NamedTuple

import numpy as np
import pytest

from ideal_jax.data.chat import end_of_turn, ending, render, render_all, render_prompt
from ideal_jax.data.records import Record
from ideal_jax.data.templates import TokenizerError
from ideal_jax.data.tokenizers import byte_tokenizer, load_tokenizer
from ideal_jax.data.tokenizing import tokenized
from ideal_jax.errors import UserError


class Style(NamedTuple):
    """A chat format. ``SAY`` in a template stands for what an assistant turn says, closed."""

    template: str
    specials: tuple[str, ...]
    end: str  # what closes an assistant turn
    lead: str = ""  # what the assistant says before its text
    system: bool = True
    bos: str | None = None


STYLES = {
    "chatml": Style(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}SAY{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    "llama3": Style(
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{% if m.role == 'assistant' %}SAY{% else %}{{ m.content | trim + '<|eot_id|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "gemma": Style(
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ bos_token }}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}{% endif %}"
        "{% if m.role == 'assistant' %}{{ '<start_of_turn>model\n' }}SAY"
        "{% else %}{{ '<start_of_turn>' + m.role + '\n' + m.content | trim + '<end_of_turn>' }}"
        "{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        system=False,
        bos="<bos>",
    ),
    "mistral": Style(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}SAY"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
        "{% endif %}{% endfor %}",
        ("</s>", "[INST]", "[/INST]"),
        "</s>",
        lead=" ",
        system=False,
        bos="<s>",
    ),
    "qwen2.5": Style(
        "{% if messages[0].role != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}SAY{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    "zephyr": Style(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
        "{% if m.role == 'assistant' %}SAY{% else %}{{ m.content + '</s>' }}{% endif %}{{ '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        "{% endfor %}",
        ("</s>",),
        "</s>",
    ),
}

TALK = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4,\n\nof course."},
    {"role": "user", "content": "And 3 × 3?"},
    {"role": "assistant", "content": "Neun: 九 🙂"},
]
SYSTEM = [{"role": "system", "content": "Be short."}, *TALK]
CASES = [
    pytest.param(style, talk, id=f"{name}-{label}")
    for name, style in STYLES.items()
    for label, talk in (("turns", TALK), ("system", SYSTEM))
    if style.system or talk is TALK
]


def tokenizer_of(style, *, generation=False):
    """The byte tokenizer with a style's special tokens and template."""
    tokenizer = byte_tokenizer()
    added = [*style.specials, *([style.bos] if style.bos else [])]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    if style.bos:
        tokenizer.bos_token = style.bos
    say = f"{{{{ {style.lead!r} + m.content + {style.end!r} }}}}"
    if generation:
        say = "{% generation %}" + say + "{% endgeneration %}"
    tokenizer.chat_template = style.template.replace("SAY", say)
    return tokenizer


def said(style, talk):
    """What the assistant says in each of its turns, its end of turn included."""
    return [style.lead + m["content"] + style.end for m in talk if m["role"] == "assistant"]


def runs(tokenizer, tokens, mask):
    """The text of every unbroken run of supervised tokens."""
    edges = np.flatnonzero(np.diff([0, *mask.astype(int), 0]))
    return [tokenizer.decode(tokens[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("generation", [False, True], ids=["prefix", "generation"])
@pytest.mark.parametrize(("style", "talk"), CASES)
def test_the_mask_is_the_assistants_text_and_its_end_of_turn(style, talk, generation):
    tokenizer = tokenizer_of(style, generation=generation)
    tokens, mask = render(tokenizer, talk)
    assert tokens.tolist() == tokenizer.apply_chat_template(talk, return_dict=False)
    assert runs(tokenizer, tokens, mask) == said(style, talk)
    last = render(tokenizer, talk, "last")
    np.testing.assert_array_equal(last.tokens, tokens)
    assert runs(tokenizer, last.tokens, last.mask) == said(style, talk)[-1:]


@pytest.mark.parametrize(("style", "talk"), CASES)
def test_generation_blocks_mean_what_they_mean_to_transformers(style, talk):
    tokenizer = tokenizer_of(style, generation=True)
    expected = tokenizer.apply_chat_template(
        talk, return_assistant_tokens_mask=True, return_dict=True
    )
    assert render(tokenizer, talk).mask.tolist() == [bool(x) for x in expected["assistant_masks"]]


def test_the_last_turn_may_have_several_blocks():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}|{% generation %}{{ '<|end|>' }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokens, mask = render(tokenizer, TALK, "last")
    assert runs(tokenizer, tokens, mask) == ["Neun: 九 🙂", "<|end|>"]
    tokens, mask = render(tokenizer, TALK)
    assert runs(tokenizer, tokens, mask) == [
        "It is 4,\n\nof course.",
        "<|end|>",
        "Neun: 九 🙂",
        "<|end|>",
    ]


def template(text, *specials, **changed):
    """The byte tokenizer with another template, special tokens and attributes."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.chat_template = text
    for name, value in changed.items():
        setattr(tokenizer, name, value)
    return tokenizer


IM = ("<|im_start|>", "<|im_end|>")
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
SAID = (
    "{% if m.role == 'assistant' %}{% generation %}SAY{% endgeneration %}{% else %}SAY{% endif %}"
)
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
BLOCK = HEAD + SAID.replace("SAY", "{{ m.content }}")
NO_BLOCK = HEAD + "{{ m.content }}"
CLOSED = "{{ '<|im_end|>' }}{% endfor %}" + ASK
CLOSED_AFTER_SPACE = "{{ '\n <|im_end|>\n' }}{% endfor %}" + ASK
BEFORE = "{% if not loop.first %}{{ '<|im_end|>\n' }}{% endif %}"
ASK_BEFORE = "{% endfor %}" + ASK.replace("{{ '", "{{ '<|im_end|>\n")


def between(text):
    """Turns are closed by what comes next."""
    return text.replace(HEAD, HEAD.replace("%}{{", "%}" + BEFORE + "{{")) + ASK_BEFORE


OPEN = "{{ '\n' }}{% endfor %}" + ASK


@pytest.mark.parametrize(
    ("text", "stop", "middle", "last", "told"),
    [
        (BLOCK + CLOSED, IM[1], IM[1], IM[1], "outside of the chat template's"),
        (BLOCK + CLOSED_AFTER_SPACE, IM[1], "\n " + IM[1], "\n " + IM[1], "outside"),
        (NO_BLOCK + CLOSED, IM[1], IM[1], IM[1], None),
        (between(BLOCK), IM[1], IM[1], IM[1], "what begins the next turn"),
        (between(NO_BLOCK), IM[1], IM[1], IM[1], "what begins the next turn"),
        (BLOCK + OPEN, IM[0], "\n" + IM[0], "\n" + IM[0], "next turn"),
        (NO_BLOCK + OPEN, IM[0], "\n" + IM[0], "\n" + IM[0], "next turn"),
    ],
    ids=["block", "block, space", "plain", "block, between", "between", "block, open", "open"],
)
def test_the_end_of_an_answer_is_learned_wherever_it_stands(text, stop, middle, last, told):
    tokenizer = template(text, *IM)
    tokens, mask = render(tokenizer, TALK)
    assert runs(tokenizer, tokens, mask) == [
        TALK[1]["content"] + middle,
        TALK[3]["content"] + last,
    ]
    only = render(tokenizer, TALK, "last")
    assert runs(tokenizer, only.tokens, only.mask) == [TALK[3]["content"] + last]
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == stop
    line = ending(tokenizer).told
    assert line is None if told is None else (told in line and stop in line)


PLAIN = "{% for m in messages %}{{ '\n' + m.role + ': ' + m.content }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
)


def test_without_any_token_the_end_of_text_ends_the_last_answer():
    tokenizer = template(PLAIN)
    assert runs(tokenizer, *render(tokenizer, TALK)) == [
        " It is 4,\n\nof course.",
        " Neun: 九 🙂<|end|>",
    ]
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    assert "no token that closes an answer" in ending(tokenizer).told
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos_token, and nothing else could end an answer"):
        end_of_turn(tokenizer)
    # What a text begins with is no end of an answer.
    begun = template("{% for m in messages %}{{ bos_token + m.content }}{% endfor %}", "<s>")
    begun.bos_token = "<s>"
    assert end_of_turn(begun) == begun.eos_token_id


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_generation_stops_at_the_templates_end_of_turn(style):
    tokenizer = tokenizer_of(style)
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(style.end)
    assert ending(tokenizer).told is None
    tokenizer.chat_template = None
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos_token"):
        end_of_turn(tokenizer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ {'user': 1}[messages[1].role].x.y }}", "undefined|no attribute"),
        ("{{ 1 // (messages | length - 2) }}", "ZeroDivisionError"),
        ("{{ '%d' | format('x') }}", "TypeError"),
        ("{{ messages[0].content.index('z') }}", "ValueError"),
        ("{{ raise_exception('no, two lines\nof it') }}", "no, two lines"),
    ],
)
def test_whatever_a_template_raises_is_one_line_with_the_row(text, reason):
    tokenizer = template(text, name_or_path="some/model")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match=rf"^f:3: .*({reason}).*some/model") as error:
        render_all(tokenizer, [messages], ["f:3"])
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, TokenizerError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}", r"^the chat template of some/model is no valid Jinja: "),
        ({"rag": "a", "plain": "b"}, "some/model has the chat templates plain, rag and none is"),
        (None, r"^some/model has no chat template"),
    ],
)
def test_a_tokenizer_that_is_of_no_use_is_refused_as_such(text, message):
    tokenizer = template(text, name_or_path="some/model")
    with pytest.raises(TokenizerError, match=message):
        render_all(tokenizer, [TALK], ["f:3"])


def test_one_of_several_templates(tmp_path):
    chosen = byte_tokenizer().chat_template
    tokenizer = template({"default": chosen, "rag": "{{ 1 + messages }}"})
    assert end_of_turn(tokenizer) == 4
    plain = render(byte_tokenizer(), TALK)
    np.testing.assert_array_equal(render(tokenizer, TALK).tokens, plain.tokens)
    # What the error advises: a file is the default.
    tokenizer = template({"plain": chosen, "rag": "{{ 1 + messages }}"})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(chosen)
    loaded = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(render(loaded, TALK).tokens, plain.tokens)


def test_text_needs_no_template():
    tokenizer = template(None)
    (example,) = tokenized([Record("1", [], "f:1", "once upon")], tokenizer)
    assert tokenizer.decode(example.tokens) == "once upon<|end|>"
    with pytest.raises(TokenizerError, match="has no chat template"):
        list(tokenized([Record("1", [], "f:1", "once"), Record("2", TALK, "f:2")], tokenizer))


# Requests for an answer that answers do not begin with.
@pytest.mark.parametrize("opening", ["<think>\n", "<think>\n\n</think>\n\n", "Let me think: "])
@pytest.mark.parametrize("supervise", ["all", "last"])
def test_an_opening_that_only_requests_have_is_no_part_of_the_prompt(opening, supervise):
    text = (HEAD + "{{ m.content + '<|im_end|>\n' }}{% endfor %}" + ASK).replace(
        "assistant\n' }}", f"assistant\n{opening}' }}}}"
    )
    tokenizer = template(text, *IM)
    for said in ("fine", "<table>", "Let us", opening + "so"):
        talk = [*TALK[:3], {"role": "assistant", "content": said}]
        tokens, mask = render(tokenizer, talk, supervise)
        assert runs(tokenizer, tokens, mask)[-1] == said + "<|im_end|>"
        prompt = render_prompt(tokenizer, talk[:-1])
        np.testing.assert_array_equal(prompt, tokens[: len(prompt)])
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_the_two_ways_to_have_no_place_for_an_answer_are_told_apart():
    other = template(NO_BLOCK + CLOSED.replace("assistant\n", "model\n"), "<|im_end|>")
    for supervise in ("all", "last"):
        with pytest.raises(UserError, match=r"asks for an answer with text .*generation") as error:
            render(other, TALK, supervise)
        assert "supervise" not in str(error.value)
    counting = template("{{ messages | length }}{{ messages[-1].content }}")
    with pytest.raises(UserError, match=r"rewrites .*, or try data.supervise=last"):
        render(counting, TALK)
    with pytest.raises(UserError, match="rewrites") as error:
        render(counting, TALK, "last")
    assert "supervise" not in str(error.value)


WEIGHED = [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]


@pytest.mark.parametrize("generation", [False, True], ids=["prefix", "generation"])
@pytest.mark.parametrize("name", ["chatml", "mistral"])
def test_turns_of_weight_0_are_not_learned(name, generation):
    style = STYLES[name]
    tokenizer = tokenizer_of(style, generation=generation)
    tokens, mask = render(tokenizer, WEIGHED)
    np.testing.assert_array_equal(tokens, render(tokenizer, TALK).tokens)
    assert runs(tokenizer, tokens, mask) == said(style, TALK)[1:]
    first = [*TALK[:3], {**TALK[3], "weight": 0}]
    for supervise in ("all", "last"):  # the last of those that are learned
        assert runs(tokenizer, *render(tokenizer, first, supervise)) == said(style, TALK)[:1]
    longer = [*WEIGHED, *WEIGHED, *TALK]
    wanted = said(style, TALK)[1:] * 2 + said(style, TALK)
    assert runs(tokenizer, *render(tokenizer, longer)) == wanted
    assert runs(tokenizer, *render(tokenizer, longer, "last")) == wanted[-1:]
    with pytest.raises(UserError, match="no assistant turn"):
        render(tokenizer, WEIGHED[:2])
