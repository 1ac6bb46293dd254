"""Masks under the formats of well-known chat models, each rebuilt from its description."""

from typing import NamedTuple

import numpy as np
import pytest

from ideal_jax.data.chat import end_of_turn, render, render_prompt
from ideal_jax.data.tokenizers import byte_tokenizer
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


@pytest.mark.parametrize(("style", "talk"), CASES)
def test_the_end_of_turn_is_one_token_and_the_prompt_is_what_precedes_the_answer(style, talk):
    tokenizer = tokenizer_of(style)
    tokens, mask = render(tokenizer, talk, "last")
    assert tokenizer.convert_ids_to_tokens(int(tokens[mask][-1])) == style.end
    prompt = render_prompt(tokenizer, talk)
    np.testing.assert_array_equal(prompt, tokens[: mask.argmax()])


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_style_without_system_turns_refuses_them_by_name(name):
    with pytest.raises(UserError, match=r"^messages: the chat template refuses .* [Rr]ole"):
        render(tokenizer_of(STYLES[name]), SYSTEM)


def test_what_a_style_adds_by_itself_is_not_supervised():
    style = STYLES["qwen2.5"]
    tokens, mask = render(tokenizer_of(style), TALK)
    assert "You are a helpful assistant." in tokenizer_of(style).decode(tokens[~mask])
    tokens, mask = render(tokenizer_of(STYLES["gemma"]), TALK)
    assert "assistant" not in tokenizer_of(STYLES["gemma"]).decode(tokens)


# Only the last answer keeps its thinking, so an earlier one looks different once more is said.
THINKING = STYLES["chatml"]._replace(
    template=STYLES["chatml"].template.replace(
        "SAY",
        "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}SAY",
    )
)


def test_a_template_that_strips_earlier_thinking_is_refused_where_all_turns_count():
    tokenizer = tokenizer_of(THINKING)
    with pytest.raises(UserError, match=r"^messages: .* rewrites earlier turns .*generation.*last"):
        render(tokenizer, TALK)
    tokens, mask = render(tokenizer, TALK, "last")
    answer = "<think>\n\n</think>\n\n" + said(THINKING, TALK)[-1]
    assert runs(tokenizer, tokens, mask) == [answer]
    assert runs(tokenizer, *render(tokenizer, TALK[:2])) == [
        "<think>\n\n</think>\n\n" + said(THINKING, TALK)[0]
    ]


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


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_generation_stops_at_the_templates_end_of_turn(style):
    tokenizer = tokenizer_of(style)
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(style.end)
    tokenizer.chat_template = tokenizer.chat_template.replace(repr(style.end), "''")
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.chat_template = None
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos_token"):
        end_of_turn(tokenizer)
