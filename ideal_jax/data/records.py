"""One example, and how to recognise it in a row of somebody's file."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ideal_jax.errors import UserError

Message = dict[str, str]
Row = dict[str, Any]
ROLES = ("system", "user", "assistant")
_SPEAKERS = {"human": "user", "gpt": "assistant", **{role: role for role in ROLES}}


@dataclasses.dataclass(frozen=True)
class Record:
    """One conversation, or one plain text.

    Attributes:
      id: the file's own id, or ``<file>:<line>``.
      messages: turns ``{"role", "content"}``, at least one by the assistant; none of a text.
      where: ``<file>:<line>`` it was read from, for error messages.
      text: what to go on pre-training with; None of a conversation.
    """

    id: str
    messages: list[Message]
    where: str
    text: str | None = None

    @property
    def prompt(self) -> list[Message]:
        """The turns before the last assistant turn."""
        return self.messages[: self._last_assistant]

    @property
    def answer(self) -> str:
        """The text of the last assistant turn."""
        return self.messages[self._last_assistant]["content"]

    @property
    def _last_assistant(self) -> int:
        return max(i for i, turn in enumerate(self.messages) if turn["role"] == "assistant")


def label(name: str) -> str:
    """The end of a file's path that its examples are called by: its folder and its name."""
    return "/".join(name.rsplit("/", 2)[-2:])


def record_of(row: Any, name: str, number: int, forms: Sequence[str]) -> Record:
    """The example in a row, by the first of ``forms`` whose fields it has.

    Raises:
      UserError: not an example; names ``<name>:<number>``.
    """
    where = f"{name}:{number}"
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {_kind(row)}")
    identity = row.get("id")
    if identity is None:
        identity = f"{label(name)}:{number}"
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise UserError(f'{where}: "id" must be a string, found {_kind(identity)}')
    identity = _text({"id": str(identity)}, "id", where)
    form = next((form for form in forms if _has(row, FORMS[form].needs)), None)
    if form is None:
        wanted = ", or ".join(" and ".join(map('"{}"'.format, FORMS[f].needs)) for f in forms)
        found = ", ".join(f'"{field}"' for field in row if row[field] is not None)
        raise UserError(f"{where}: needs {wanted}; it has {found or 'nothing'}")
    if form == "text":
        return Record(identity, [], where, _text(row, "text", where))
    messages = FORMS[form].messages(row, where)
    if all(message["role"] != "assistant" for message in messages):
        raise UserError(f"{where}: has no assistant turn, so there is nothing to learn")
    return Record(identity, messages, where)


def _has(row: Row, fields: Sequence[str]) -> bool:
    """Whether a row has these fields. In a table every row has every column: it may be empty."""
    return all(field in row for field in fields) and any(row[f] is not None for f in fields)


def _prompt_response(row: Row, where: str) -> list[Message]:
    return _exchange(_text(row, "prompt", where), _text(row, "response", where))


def _alpaca(row: Row, where: str) -> list[Message]:
    prompt = _text(row, "instruction", where)
    if row.get("input"):
        prompt += "\n\n" + _text(row, "input", where)
    return _exchange(prompt, _text(row, "output", where))


def _messages(row: Row, where: str) -> list[Message]:
    turns = []
    for turn in _list(row, "messages", where):
        if turn.get("role") not in ROLES:
            raise UserError(
                f'{where}: "role" must be one of {", ".join(ROLES)}, found {turn.get("role")!r}'
            )
        turns.append({"role": turn["role"], "content": _text(turn, "content", where)})
    return turns


def _sharegpt(row: Row, where: str) -> list[Message]:
    turns = []
    for turn in _list(row, "conversations", where):
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            raise UserError(
                f'{where}: "from" must be one of {", ".join(_SPEAKERS)}, found {speaker!r}'
            )
        turns.append({"role": _SPEAKERS[speaker], "content": _text(turn, "value", where)})
    return turns


def _list(row: Row, key: str, where: str) -> list[Row]:
    """The turns under ``key``; a table may hold them as one list per field."""
    turns = row[key]
    if isinstance(turns, dict) and turns and all(isinstance(x, list) for x in turns.values()):
        if len({len(column) for column in turns.values()}) > 1:
            raise UserError(f'{where}: the lists in "{key}" differ in length')
        turns = [dict(zip(turns, turn, strict=True)) for turn in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list):
        raise UserError(f'{where}: "{key}" must be a list, found {_kind(turns)}')
    for turn in turns:
        if not isinstance(turn, dict):
            raise UserError(f'{where}: each of "{key}" must be an object, found {_kind(turn)}')
    return turns


def _exchange(prompt: str, response: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _text(value: Row, key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise UserError(f'{where}: "{key}" must be a string, found {_kind(text)}')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f'{where}: "{key}" is not valid Unicode: {error.reason}') from error
    return text


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


class Form(NamedTuple):
    """One way to write an example: the fields it needs, others it may have, how it is read."""

    needs: tuple[str, ...]
    others: tuple[str, ...]
    messages: Callable[[Row, str], list[Message]]


# In the order in which they are looked for.
FORMS = {
    "messages": Form(("messages",), (), _messages),
    "prompt": Form(("prompt", "response"), (), _prompt_response),
    "alpaca": Form(("instruction", "output"), ("input",), _alpaca),
    "sharegpt": Form(("conversations",), (), _sharegpt),
    "text": Form(("text",), (), lambda row, where: []),
}
FIELDS = ("id", *(field for form in FORMS.values() for field in form.needs + form.others))
