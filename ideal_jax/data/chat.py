"""Conversations as tokens, and which of them the assistant says."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ideal_jax.data.sources import Message
from ideal_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")
# Some templates print today's date unless told another; tokens must not depend on the day.
_FIXED = {"date_string": "26 Jul 2024"}
# Unicode noncharacters: never part of interchanged text.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))

Supervise = Literal["all", "last"]  # which assistant turns


class Rendered(NamedTuple):
    """tokens int32[T] of a conversation; mask bool[T], True on what the assistant says."""

    tokens: np.ndarray
    mask: np.ndarray


def render(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], supervise: Supervise = "all"
) -> Rendered:
    """Tokens and assistant mask (end of turn included) of one conversation."""
    return render_all(tokenizer, [messages], ["messages"], supervise)[0]


def render_all(
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[Sequence[Message]],
    where: Sequence[str],
    supervise: Supervise = "all",
) -> list[Rendered]:
    """`render` for many conversations at once, which is faster.

    The mask comes from the template's ``{% generation %}`` blocks, or else from rendering the
    conversation up to and including each assistant turn. Text that spells a special token stays
    text: it can not end a turn or forge a role.

    Args:
      where: what to call each conversation in an error message.
      supervise: "all" assistant turns, or the "last" one only.
    """
    chat = _Chat(tokenizer)
    texts, spans = [], []
    for messages, name in zip(conversations, where, strict=True):
        if all(message["role"] != "assistant" for message in messages):
            raise UserError(f"{name}: has no assistant turn, so there is nothing to learn")
        text, said = chat.text_and_spans(messages, name, supervise)
        texts.append(text)
        spans.append(said)
    rendered = []
    for encoded, said, name in zip(chat.encode(texts), spans, where, strict=True):
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
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], where: str = "messages"
) -> np.ndarray:
    """int32[T]: the conversation, without a closing assistant turn, then the template's request
    for an answer."""
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    chat = _Chat(tokenizer)
    text = chat.text(messages, where, add_generation_prompt=True)
    return chat.encode([text])[0].tokens


def end_of_turn(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The token to stop at: what the chat template closes an answer with, else the end of text.

    Chat models end a turn with a token of their own (Gemma's ``<end_of_turn>``), and rarely a text.
    """
    if tokenizer.chat_template:
        exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tokens, mask = render(tokenizer, exchange)
        last = int(tokens[mask][-1])
        if last in tokenizer.added_tokens_decoder:
            return last
    if tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path or "the tokenizer"
        raise UserError(f"{name} has no eos_token; add it to its tokenizer_config.json")
    return int(tokenizer.eos_token_id)


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

    def mask(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """bool[T], True on tokens with a character in one of the spans."""
        mask, before = np.zeros(len(self.tokens), bool), 0
        for piece, encoding in self.pieces:
            for start, stop in spans:
                low, high = max(start - piece.offset, 0), stop - piece.offset
                if low < min(high, len(piece.text)):
                    first, last = (_token_from(encoding, c, piece.text) for c in (low, high))
                    if last < len(encoding) and encoding.token_to_chars(last)[0] < high:
                        last += 1
                    mask[before + first : before + last] = True
            before += len(encoding)
        return mask


def _token_from(encoding: Any, start: int, text: str) -> int:
    """The first token with a character from ``start`` on; how many there are if none has."""
    for character in range(start, len(text)):
        token: int | None = encoding.char_to_token(character)
        if token is not None:
            return token
    return len(encoding)


class _Chat:
    """A tokenizer's chat template: conversation → text → tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        if not tokenizer.chat_template:
            name = tokenizer.name_or_path or "the tokenizer"
            raise UserError(
                f"{name} has no chat template; add chat_template.jinja to its folder, "
                "or choose an instruction-tuned model's tokenizer"
            )
        self.tokenizer = tokenizer
        self.template = tokenizer.get_chat_template()
        self.values = {**tokenizer.special_tokens_map, **_FIXED}
        specials = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        longest_first = sorted(specials, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def text(
        self, messages: Sequence[Message], where: str, *, add_generation_prompt: bool
    ) -> _Marked:
        """The conversation as text."""
        messages, mark = self._mark(messages)
        rendered, _ = self._render(messages, where, add_generation_prompt=add_generation_prompt)
        return _Marked(rendered, mark)

    def text_and_spans(
        self, messages: Sequence[Message], where: str, supervise: Supervise
    ) -> tuple[_Marked, list[tuple[int, int]]]:
        """The conversation as text, and the character ranges to learn from the assistant."""
        messages, mark = self._mark(messages)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if _GENERATION.search(self.template):
            text, spans = self._render(messages, where, return_assistant_tokens_mask=True)
            if supervise == "last" and len(turns) > 1:
                # A turn may have several blocks, so those of the turns before are counted.
                before = messages[: turns[-1]]
                _, earlier = self._render(before, where, return_assistant_tokens_mask=True)
                spans = spans[len(earlier) :]
        else:
            text, _ = self._render(messages, where)
            spans = [
                self._span_by_prefix(text, messages[: i + 1], where)
                for i in (turns if supervise == "all" else turns[-1:])
            ]
        return _Marked(text, mark), spans

    def _span_by_prefix(
        self, text: str, messages: Sequence[Message], where: str
    ) -> tuple[int, int]:
        """What the last of ``messages``, an assistant turn, adds to the text that asks for it."""
        asked, _ = self._render(messages[:-1], where, add_generation_prompt=True)
        # A line break between turns is the template's, not the assistant's.
        answered = self._render(messages, where)[0].rstrip()
        if not (answered.startswith(asked) and text.startswith(answered)):
            raise UserError(
                f"{where}: the chat template rewrites earlier turns as the conversation grows, so "
                "the assistant's tokens can not be found; add {% generation %} tags to the "
                "template, or try data.supervise=last"
            )
        return len(asked), len(answered)

    def encode(self, texts: Sequence[_Marked]) -> list[_Encoded]:
        """Tokens of each text; what is marked is tokenized as mere text."""
        pieces = [list(text.pieces()) for text in texts]
        plain, mere = (
            self._tokenize([p.text for parts in pieces for p in parts if p.mere_text == kind], kind)
            for kind in (False, True)
        )
        encoded = []
        for parts in pieces:
            found = [(part, next(mere if part.mere_text else plain)) for part in parts]
            tokens = np.concatenate([np.array(one.ids, np.int32) for _, one in found])
            encoded.append(_Encoded(tokens, found))
        return encoded

    def _tokenize(self, texts: list[str], mere_text: bool) -> Iterator[Any]:
        # Not the tokenizer itself: it makes lists of much that is not needed, which takes as long.
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = mere_text
        yield from backend.encode_batch(texts, add_special_tokens=False)

    def _mark(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        everything = "".join(message["content"] for message in messages)
        mark = next(mark for mark in _MARKS if mark not in everything)
        if self.special.search(everything):
            messages = [
                {**m, "content": self.special.sub(rf"{mark}\g<0>{mark}", m["content"])}
                for m in messages
            ]
        return list(messages), mark

    def _render(
        self, messages: Sequence[Message], where: str, **options: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        import jinja2
        from transformers.utils import chat_template_utils

        # Its annotation says it returns a string; it returns two lists.
        render: Callable[..., Any] = chat_template_utils.render_jinja_template
        try:
            texts, spans = render(
                [list(messages)], chat_template=self.template, **options, **self.values
            )
        except jinja2.TemplateError as error:
            raise UserError(
                f"{where}: the chat template refuses this conversation: {error}"
            ) from error
        return texts[0], spans[0] if spans else []
