"""A tokenizer's chat template: conversations as text."""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ideal_jax.data.files import strings
from ideal_jax.data.turns import Message
from ideal_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")
# Unicode noncharacters: never part of interchanged text.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))

# Some templates print the day, by `date_string` or by calling `strftime_now`; tokens must not
# depend on it. transformers hands no function of ours on, so a macro is put before the template.
_DAY = datetime.datetime(2024, 7, 26)
_DIRECTIVES = {
    f"%{letter}": _DAY.strftime(f"%{letter}") for letter in "aAbBcdHIjmMpSUwWxXyYGuVDFTRehCnt"
} | {"%-d": "26", "%-m": "7", "%-H": "0", "%-I": "12", "%-M": "0", "%-S": "0", "%-j": "208"}
_FIXED_DAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(
        f" | replace({code!r}, {text!r})" for code, text in {**_DIRECTIVES, "%%": "%"}.items()
    )
    # The line break belongs to the block before it.
    + " }}{%- endmacro %}\n"
)
_FIXED = {"date_string": "26 Jul 2024"}
_REASONING = r"reasoning_content|thinking|reasoning"


class TokenizerError(UserError):
    """No conversation can be tokenized: the fault is the tokenizer's, not a record's."""


class Talk(NamedTuple):
    """A conversation as a template is given it: special tokens in its text stand between marks.

    Attributes:
      messages: its turns.
      tools: the functions it offers.
      learned: numbers of the assistant's turns to learn from.
      where: what to call it in an error message.
      quote: the mark around what spells a special token.
      edge: another mark, which none of its texts has.
    """

    messages: list[Message]
    tools: list[Any] | None
    learned: list[int]
    where: str
    quote: str
    edge: str

    def first(self, count: int) -> "Talk":
        """Its first turns."""
        return self._replace(messages=self.messages[:count])

    def then(self, content: str) -> "Talk":
        """The same with another turn of the assistant."""
        turn = {"role": "assistant", "content": content}
        return self._replace(messages=[*self.messages, turn])


@dataclasses.dataclass(frozen=True)
class Template:
    """A chat template with all that decides what it writes.

    Attributes:
      source: Jinja.
      name: for error messages: of the tokenizer, and of the template if it has several.
      values: JSON of what it may print: special tokens.
      specials: texts of the special tokens.
      closing: texts of the added tokens that may end a turn.
      eos: text of the end-of-text token, or "".
    """

    source: str
    name: str
    values: str
    specials: tuple[str, ...]
    closing: tuple[str, ...]
    eos: str
    # Roles whose content it was seen to write.
    _written: set[str] = dataclasses.field(default_factory=set, compare=False, repr=False)

    @property
    def has_blocks(self) -> bool:
        """Whether it says itself what the assistant says."""
        return bool(_GENERATION.search(self.source))

    def talk(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        learned: Sequence[int] = (),
        where: str = "messages",
    ) -> Talk:
        """A conversation as this template is given it.

        Raises:
          UserError: it has something that the template would not write.
        """
        for key, reads in (("tool_calls", "tool_calls"), ("reasoning_content", _REASONING)):
            if any(message.get(key) for message in messages):
                self._check_reads(reads, key, where)
        if tools:
            self._check_reads(r"\btools\b", "tools", where)
        everything = "\0".join(strings([list(messages), tools]))
        quote, edge = [mark for mark in _MARKS if mark not in everything][:2]
        developer = "developer" if "developer" in self.source else "system"
        given = [{key: m[key] for key in m if key != "weight"} for m in messages]
        for message in given:
            if message["role"] == "developer":
                message["role"] = developer
        special = any_of(self.specials)
        if special.search(everything):
            given = [{**_quoted(m, special, quote), "role": m["role"]} for m in given]
            tools = _quoted(tools, special, quote)
        talk = Talk(given, tools, list(learned), where, quote, edge)
        for number, message in enumerate(given):
            if message["role"] not in ("user", "assistant", *self._written):
                self._check_writes(talk, number)
        return talk

    def text(self, talk: Talk, *, prompt: bool = False) -> str:
        """What it writes, with a request for an answer if wanted."""
        return self._render(talk, add_generation_prompt=prompt)[0]

    def text_and_blocks(self, talk: Talk) -> tuple[str, list[tuple[int, int]]]:
        """What it writes, and the character ranges of its generation blocks."""
        return self._render(talk, return_assistant_tokens_mask=True)

    def _check_reads(self, reads: str, key: str, where: str) -> None:
        if not re.search(reads, self.source):
            raise UserError(
                f'{where}: the chat template of {self.name} does not write "{key}"; choose a '
                f'tokenizer whose template does, or give the source ignore="{key}"'
            )

    def _check_writes(self, talk: Talk, number: int) -> None:
        """A template may pass over roles that it does not know."""
        turn = talk.messages[number]
        other = {**turn, "content": talk.edge}
        changed = [*talk.messages[:number], other, *talk.messages[number + 1 :]]
        if self.text(talk) == self.text(talk._replace(messages=changed)):
            raise UserError(
                f'{talk.where}: the chat template of {self.name} leaves out what "{turn["role"]}" '
                "turns say; remove them, or choose a tokenizer whose template writes them"
            )
        self._written.add(turn["role"])

    def _render(self, talk: Talk, **options: bool) -> tuple[str, list[tuple[int, int]]]:
        import jinja2
        from transformers.utils import chat_template_utils

        # Its annotation says it returns a string; it returns two lists.
        render: Callable[..., Any] = chat_template_utils.render_jinja_template
        values = {**json.loads(self.values), **_FIXED}
        try:
            texts, spans = render(
                [talk.messages], talk.tools, chat_template=self.source, **options, **values
            )
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"the chat template of {self.name} is no valid Jinja: {_line(error)}"
            ) from error
        except Exception as error:  # a template is a program: it may raise anything
            raise UserError(
                f"{talk.where}: the chat template refuses this conversation: {_line(error)} "
                f"(template of {self.name})"
            ) from error
        return texts[0], spans[0] if spans else []


def template_of(tokenizer: "PreTrainedTokenizerFast", *, tools: bool = False) -> Template:
    """A tokenizer's chat template, the one for tools if it has one and they are wanted.

    Raises:
      TokenizerError: it has none, or several and none of them is the default.
    """
    known = tokenizer.special_tokens_map
    never = {known.get(key) for key in ("bos_token", "pad_token", "unk_token")}
    eos = str(tokenizer.eos_token or "")
    added = tokenizer.added_tokens_decoder.values()
    closing = tuple(t.content for t in added if t.content == eos or t.content not in never)
    specials = tuple(token.content for token in added if token.special)
    values = json.dumps(known, default=str)
    return _shared(*_chosen(tokenizer, tools), values, specials, closing, eos)


# What is found out about a template is found out once.
_shared = functools.lru_cache(maxsize=16)(Template)


@functools.lru_cache(maxsize=64)
def any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest that fits."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _chosen(tokenizer: "PreTrainedTokenizerFast", tools: bool) -> tuple[str, str]:
    """(source, name) of a template."""
    name = tokenizer.name_or_path or "the tokenizer"
    source: Any = tokenizer.chat_template
    if not source:
        raise TokenizerError(
            f"{name} has no chat template; add chat_template.jinja to its folder, "
            "or choose an instruction-tuned model's tokenizer"
        )
    if isinstance(source, dict):
        key = "tool_use" if tools and "tool_use" in source else "default"
        if key not in source:
            raise TokenizerError(
                f"{name} has the chat templates {', '.join(sorted(source))} and none is called "
                "default; save the one to use as chat_template.jinja in its folder"
            )
        source, name = source[key], f'{name}, "{key}"'
    return (_FIXED_DAY if "strftime_now" in source else "") + source, name


def _quoted(value: Any, special: re.Pattern[str], quote: str) -> Any:
    """The JSON value with marks around what spells a special token."""
    if isinstance(value, str):
        return special.sub(rf"{quote}\g<0>{quote}", value)
    if isinstance(value, dict):
        return {key: _quoted(item, special, quote) for key, item in value.items()}
    return [_quoted(item, special, quote) for item in value] if isinstance(value, list) else value


def _line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    told = type(error).__module__.startswith("jinja2")  # raise_exception's, and undefined names
    return text if told and text else f"{type(error).__name__}: {text}"
