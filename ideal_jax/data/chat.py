"""Conversations as tokens, and which of them the assistant says."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ideal_jax.data.records import learned
from ideal_jax.data.spans import Span, turns_of
from ideal_jax.data.templates import template_of
from ideal_jax.data.turns import Message
from ideal_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Supervise = Literal["all", "last"]  # which assistant turns
Tools = list[Any] | None  # JSON schemas of the functions that a conversation offers


class Rendered(NamedTuple):
    """tokens int32[T] of a conversation; mask bool[T], True on what the assistant says."""

    tokens: np.ndarray
    mask: np.ndarray


class Ending(NamedTuple):
    """The token that ends an answer, and a line for people if it is not what they expect."""

    token: int
    told: str | None


def render(
    tokenizer: "PreTrainedTokenizerFast",
    messages: Sequence[Message],
    supervise: Supervise = "all",
    tools: Tools = None,
) -> Rendered:
    """Tokens and assistant mask (end of turn included) of one conversation."""
    return render_all(tokenizer, [messages], ["messages"], supervise, [tools])[0]


def render_all(
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[Sequence[Message]],
    where: Sequence[str],
    supervise: Supervise = "all",
    tools: Sequence[Tools] | None = None,
) -> list[Rendered]:
    """`render` for many conversations at once, which is faster.

    The mask is found as `spans` says. Turns of weight 0 are not in it. Text that spells a special
    token stays text: it can not end a turn or forge a role.

    Args:
      tokenizer: with a chat template.
      conversations: their turns.
      where: what to call each conversation in an error message.
      supervise: "all" assistant turns, or the "last" one only.
      tools: what each conversation offers.

    Raises:
      TokenizerError: it has no template that could be used.
      UserError: the template can not write a conversation, or nothing of it would be learned.
    """
    templates = functools.cache(lambda tools: template_of(tokenizer, tools=tools))
    texts, spans = [], []
    offered = tools or [None] * len(conversations)
    for messages, name, functions in zip(conversations, where, offered, strict=True):
        turns = learned(messages)
        if not turns:
            raise UserError(f"{name}: has no assistant turn, so there is nothing to learn")
        template = templates(bool(functions))
        wanted = turns if supervise == "all" else turns[-1:]
        talk = template.talk(messages, functions, wanted, name)
        text, said = turns_of(template).text_and_spans(talk)
        texts.append(_Marked(text, talk.quote))
        spans.append(said)
    rendered = []
    for encoded, said, name in zip(_encode(tokenizer, texts), spans, where, strict=True):
        mask = encoded.mask(said)
        if not mask.any():
            raise UserError(
                f"{name}: the chat template marks no token as the assistant's; "
                "check its {% generation %} block"
            )
        if mask.all():
            raise UserError(
                f"{name}: the chat template marks every token as the assistant's; "
                "there must be a prompt outside its {% generation %} block"
            )
        rendered.append(Rendered(encoded.tokens, mask))
    return rendered


def render_prompt(
    tokenizer: "PreTrainedTokenizerFast",
    messages: Sequence[Message],
    where: str = "messages",
    tools: Tools = None,
) -> np.ndarray:
    """int32[T]: the turns so far, then the template's request for an answer.

    These are the tokens that training sees before the answer, if the template does not change what
    it wrote as the conversation grows.
    """
    template = template_of(tokenizer, tools=bool(tools))
    talk = template.talk(messages, tools, where=where)
    text = turns_of(template).prompt(talk)
    return _encode(tokenizer, [_Marked(text, talk.quote)])[0].tokens


def end_of_turn(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The token to stop at: the one that training teaches as the end of an answer.

    Chat models end a turn with a token of their own (Gemma's ``<end_of_turn>``), and rarely a text.
    """
    return ending(tokenizer).token


def ending(tokenizer: "PreTrainedTokenizerFast") -> Ending:
    """What training teaches as the end of an answer.

    Raises:
      UserError: nothing could be.
    """
    if tokenizer.chat_template:
        stop = turns_of(template_of(tokenizer)).stop
        if stop.how != "end of text":
            token: Any = tokenizer.convert_tokens_to_ids(stop.text)
            told = {
                "inside": None,
                "outside": f"{stop.text} closes an answer outside of the chat template's "
                "{% generation %} block; it is learned as its end all the same",
                "next turn": "the chat template does not close an answer, so what begins the next "
                f"turn is learned as its end and ends generation: {stop.text}",
            }[stop.how]
            return Ending(int(token), told)
    if tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path or "the tokenizer"
        raise UserError(
            f"{name} has no eos_token, and nothing else could end an answer; "
            "add it to its tokenizer_config.json"
        )
    told = (
        "the chat template has no token that closes an answer, so the end of text is learned as "
        f"the end of the last answer and ends generation: {tokenizer.eos_token}"
    )
    return Ending(int(tokenizer.eos_token_id), told if tokenizer.chat_template else None)


class _Piece(NamedTuple):
    """Part of a rendered text, from character ``offset``; special tokens may be mere text."""

    text: str
    offset: int
    mere_text: bool


class _Marked(NamedTuple):
    """Rendered text in which ``mark`` surrounds content that spells a special token."""

    text: str
    mark: str

    def pieces(self) -> Iterator[_Piece]:
        """The text between marks; every other piece was marked."""
        offset = 0
        for number, text in enumerate(self.text.split(self.mark)):
            yield _Piece(text, offset, number % 2 == 1)
            offset += len(text) + len(self.mark)


class _Encoded(NamedTuple):
    """Tokens int32[T], and the pieces of text that they were encoded from, one after the other."""

    tokens: np.ndarray
    pieces: list[tuple[_Piece, Any]]

    def mask(self, spans: Sequence[Span]) -> np.ndarray:
        """bool[T], True on tokens with a character in one of the spans."""
        mask, before = np.zeros(len(self.tokens), bool), 0
        spans_Sx2 = np.asarray(spans, np.int64).reshape(-1, 2)
        for piece, encoding in self.pieces:
            span_of = spans_Sx2 - piece.offset
            inside = (span_of[:, 0] < len(piece.text)) & (span_of[:, 1] > 0)
            if inside.any():
                # Tokens and spans are in the order of the text.
                ends = np.fromiter(itertools.chain.from_iterable(encoding.offsets), np.int64)
                starts, stops = ends.reshape(-1, 2).T
                low = np.searchsorted(stops, span_of[inside, 0], "right")
                high = np.searchsorted(starts, span_of[inside, 1], "left")
                for first, last in zip(low, high, strict=True):
                    mask[before + first : before + last] = True
            before += len(encoding)
        return mask


def _encode(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[_Marked]) -> list[_Encoded]:
    """Tokens of each text; what is marked is tokenized as mere text."""
    pieces = [list(text.pieces()) for text in texts]
    plain, mere = (
        _tokens(tokenizer, [p.text for ps in pieces for p in ps if p.mere_text == kind], kind)
        for kind in (False, True)
    )
    encoded = []
    for parts in pieces:
        found = [(part, next(mere if part.mere_text else plain)) for part in parts]
        tokens = np.concatenate([np.array(one.ids, np.int32) for _, one in found])
        encoded.append(_Encoded(tokens, found))
    return encoded


def _tokens(
    tokenizer: "PreTrainedTokenizerFast", texts: list[str], mere_text: bool
) -> Iterator[Any]:
    # Not the tokenizer itself: it makes lists of much that is not needed, which takes as long.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = mere_text
    yield from backend.encode_batch(texts, add_special_tokens=False)
