"""One example, and how to recognise it in a row of somebody's file."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ideal_jax.data.turns import ROLES, SPEAKERS, UNREAD, kind, refuse, text, tools, turn
from ideal_jax.data.turns import Message as Message
from ideal_jax.data.turns import Row as Row
from ideal_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One conversation, or one plain text.

    Attributes:
      id: the file's own id, or ``<file>:<line>``.
      messages: turns ``{"role", "content"}`` (see `turns.Message`), at least one of them the
        assistant's and to be learned; none of a text.
      where: ``<file>:<line>`` it was read from, for error messages.
      text: what to go on pre-training with; None of a conversation.
      tools: the functions that a conversation offers, as JSON schemas.
    """

    id: str
    messages: list[Message]
    where: str
    text: str | None = None
    tools: list[Any] | None = None

    @property
    def prompt(self) -> list[Message]:
        """The turns before the last assistant turn that is learned; empty if it comes first."""
        return self.messages[: learned(self.messages)[-1]]

    @property
    def answer(self) -> str:
        """The text of the last assistant turn that is learned."""
        return str(self.messages[learned(self.messages)[-1]]["content"])


def learned(messages: Sequence[Message]) -> list[int]:
    """The numbers of the assistant's turns, without those of weight 0."""
    return [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1)
    ]


def label(name: str) -> str:
    """The end of a file's path that its examples are called by: its folder and its name."""
    return "/".join(name.rsplit("/", 2)[-2:])


def record_of(
    row: Any, name: str, number: int, forms: Sequence[str], ignore: Sequence[str] = ()
) -> Record:
    """The example in a row, by the first of ``forms`` whose fields it has.

    Args:
      row: as it was read.
      name: of the file.
      number: of the row in it.
      forms: which of `FORMS` to look for.
      ignore: keys of the row and of its turns to do without.

    Raises:
      UserError: not an example, or one that would lose something; names ``<name>:<number>``.
    """
    where = f"{name}:{number}"
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {kind(row)}")
    row = {key: value for key, value in row.items() if key not in ignore}
    identity = row.get("id")
    if identity is None:
        identity = f"{label(name)}:{number}"
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise UserError(f'{where}: "id" must be a string, found {kind(identity)}')
    identity = text({"id": str(identity)}, "id", where)
    form = next((form for form in forms if _has(row, FORMS[form].needs)), None)
    if form is None:
        wanted = ", or ".join(" and ".join(map('"{}"'.format, FORMS[f].needs)) for f in forms)
        found = ", ".join(f'"{field}"' for field in row if row[field] is not None)
        raise UserError(f"{where}: needs {wanted}; it has {found or 'nothing'}")
    if form == "text":
        return Record(identity, [], where, text(row, "text", where))
    refuse(row, UNREAD, where)
    messages = _with_system(FORMS[form].messages(row, where, ignore), row, where)
    if all(message["role"] != "assistant" for message in messages):
        raise UserError(f"{where}: has no assistant turn, so there is nothing to learn")
    if not learned(messages):
        raise UserError(f"{where}: every assistant turn has weight 0, so there is nothing to learn")
    return Record(identity, messages, where, tools=tools(row, where))


def _has(row: Row, fields: Sequence[str]) -> bool:
    """Whether a row has these fields. In a table every row has every column: it may be empty."""
    return all(field in row for field in fields) and any(row[f] is not None for f in fields)


def _with_system(messages: list[Message], row: Row, where: str) -> list[Message]:
    """The turns after what the row's own field says to the model."""
    if not row.get("system"):
        return messages
    system = {"role": "system", "content": text(row, "system", where)}
    first = [m["content"] for m in messages[:1] if m["role"] in ("system", "developer")]
    if first and first[0] != system["content"]:
        raise UserError(f'{where}: "system" and the first turn differ; remove one of them')
    return messages if first else [system, *messages]


def _prompt_response(row: Row, where: str, ignore: Sequence[str]) -> list[Message]:
    exchange = _exchange(text(row, "prompt", where), text(row, "response", where))
    return _history(row, where) + exchange


def _alpaca(row: Row, where: str, ignore: Sequence[str]) -> list[Message]:
    prompt = text(row, "instruction", where)
    if row.get("input"):
        prompt += "\n\n" + text(row, "input", where)
    return _history(row, where) + _exchange(prompt, text(row, "output", where))


def _messages(row: Row, where: str, ignore: Sequence[str]) -> list[Message]:
    refuse(row, ("history",), where)
    roles = {role: role for role in ROLES} | {"function": "tool"}
    listed = _list(row, "messages", where, ignore)
    return [turn(one, ("role", "content"), roles, where) for one in listed]


def _sharegpt(row: Row, where: str, ignore: Sequence[str]) -> list[Message]:
    refuse(row, ("history",), where)
    listed = _list(row, "conversations", where, ignore)
    return [turn(one, ("from", "value"), SPEAKERS, where) for one in listed]


def _list(row: Row, key: str, where: str, ignore: Sequence[str]) -> list[Row]:
    """The turns under ``key``; a table may hold them as one list per field."""
    turns = row[key]
    if isinstance(turns, dict) and turns and all(isinstance(x, list) for x in turns.values()):
        if len({len(column) for column in turns.values()}) > 1:
            raise UserError(f'{where}: the lists in "{key}" differ in length')
        turns = [dict(zip(turns, one, strict=True)) for one in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list):
        raise UserError(f'{where}: "{key}" must be a list, found {kind(turns)}')
    for one in turns:
        if not isinstance(one, dict):
            raise UserError(f'{where}: each of "{key}" must be an object, found {kind(one)}')
    return [{name: one[name] for name in one if name not in ignore} for one in turns]


def _history(row: Row, where: str) -> list[Message]:
    """The exchanges before this one, ``[[prompt, response], …]``."""
    exchanges = row.get("history") or []
    if not isinstance(exchanges, list):
        raise UserError(f'{where}: "history" must be a list, found {kind(exchanges)}')
    turns = []
    for pair in exchanges:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f'{where}: each of "history" must be a pair of a prompt and a response')
        turns += _exchange(*(text({"history": said}, "history", where) for said in pair))
    return turns


def _exchange(prompt: str, response: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


class Form(NamedTuple):
    """One way to write an example: the fields it needs, others it may have, how it is read."""

    needs: tuple[str, ...]
    others: tuple[str, ...]
    messages: Callable[[Row, str, Sequence[str]], list[Message]]


# In the order in which they are looked for.
FORMS = {
    "messages": Form(("messages",), (), _messages),
    "prompt": Form(("prompt", "response"), (), _prompt_response),
    "alpaca": Form(("instruction", "output"), ("input",), _alpaca),
    "sharegpt": Form(("conversations",), (), _sharegpt),
    "text": Form(("text",), (), lambda row, where, ignore: []),
}
# What a conversation of any form may have beside it.
BESIDE = ("id", "system", "history", "tools", "functions", *UNREAD)
FIELDS = (*BESIDE, *(field for form in FORMS.values() for field in form.needs + form.others))
