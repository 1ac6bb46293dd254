"""One turn of a conversation as somebody's file has it, and the turn that we make of it."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ideal_jax.errors import UserError

Row = dict[str, Any]
# {"role", "content"}; of the assistant perhaps "tool_calls", "reasoning_content" and "weight": 0;
# of a tool perhaps "tool_call_id" and "name".
Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "developer", "tool")
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    **{role: role for role in ROLES},
    "observation": "tool",
    "function_call": "assistant",
}
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
# They change an example, and nothing here reads them: of a row, and of a turn.
UNREAD = (*_MEDIA, *_REASONING, "documents", "function_call", "tool_calls", "chat_template_kwargs")
_UNREAD_OF_TURN = (*_MEDIA, "refusal")


def refuse(value: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Refuse what would be dropped although it changes the example."""
    for key in keys:
        if value.get(key):
            raise UserError(
                f'{where}: "{key}" changes the example and is not supported here; remove it, or '
                f'give the source ignore="{key}" to do without it'
            )


def turn(value: Row, keys: tuple[str, str], roles: Mapping[str, str], where: str) -> Message:
    """The turn in ``value``.

    Args:
      value: as it was read.
      keys: what its role and its content are called there.
      roles: our name of each role there.
      where: for error messages.

    Raises:
      UserError: no turn, or it says something that can not be kept.
    """
    refuse(value, _UNREAD_OF_TURN, where)
    role_key, content_key = keys
    named = value.get(role_key)
    if not isinstance(named, str) or named not in roles:
        raise UserError(f'{where}: "{role_key}" must be one of {", ".join(roles)}, found {named!r}')
    said, role = dict(value), roles[named]
    if named == "function_call":
        said["function_call"], said[content_key] = text(value, content_key, where), ""
    calls = _calls(said, where)
    if calls and said.get(content_key) is None:
        said[content_key] = ""
    message: Message = {"role": role, "content": _content(said, content_key, where)}
    if role == "assistant":
        message |= {"tool_calls": calls} if calls else {}
        message |= _reasoning(said, where)
    else:
        refuse(said, ("tool_calls", "function_call", *_REASONING), where)
    if role == "tool":
        optional = {key: said[key] for key in ("tool_call_id", "name") if said.get(key) is not None}
        message |= {key: text(optional, key, where) for key in optional}
    return message | _weight(said, role, where)


def tools(row: Row, where: str) -> list[Any] | None:
    """The functions that a row offers, as JSON schemas in the form that templates expect."""
    named = [key for key in ("tools", "functions") if row.get(key)]
    if not named:
        return None
    if len(named) > 1:
        raise UserError(f'{where}: has "tools" and "functions"; remove one of them')
    found = _json(row[named[0]], named[0], where)
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise UserError(f'{where}: "{named[0]}" must be a list of objects, or one written as JSON')
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in found
    ] or None


def text(value: Mapping[str, Any], key: str, where: str) -> str:
    """The text under ``key``, valid Unicode."""
    found = value.get(key)
    if not isinstance(found, str):
        raise UserError(f'{where}: "{key}" must be a string, found {kind(found)}')
    return _encodable(found, key, where)


def kind(value: Any) -> str:
    """What a JSON value is, for error messages."""
    return "nothing" if value is None else type(value).__name__


def _encodable(found: str, key: str, where: str) -> str:
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise UserError(f'{where}: "{key}" is not valid Unicode: {error.reason}') from error
    return found


def _content(value: Row, key: str, where: str) -> str:
    """Text, or parts of text one after the other."""
    parts = value.get(key)
    if not isinstance(parts, list):
        return text(value, key, where)
    for part in parts:
        found = part.get("type") if isinstance(part, dict) else kind(part)
        if found != "text":
            raise UserError(f'{where}: "{key}" has a part of type {found!r}; only text is read')
    return "".join(text(part, "text", where) for part in parts)


def _calls(value: Row, where: str) -> list[Any]:
    """The functions that a turn calls; one in the older form becomes a list of one."""
    calls = _json(value.get("tool_calls") or [], "tool_calls", where)
    if not isinstance(calls, list):
        raise UserError(f'{where}: "tool_calls" must be a list, found {kind(calls)}')
    if value.get("function_call"):
        older = _json(value["function_call"], "function_call", where)
        calls = calls + (older if isinstance(older, list) else [older])
    return [_call(call, where) for call in calls]


def _call(call: Any, where: str) -> Row:
    call = call if isinstance(call, dict) else {}
    call = call if "function" in call else {"type": "function", "function": call}
    function = call["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{where}: each call of a function must give its name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # Templates write an object as JSON; text they would write as a string within JSON.
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(arguments)
            arguments = parsed if isinstance(parsed, dict) else arguments
    arguments = _json({"arguments": arguments}, "arguments", where)["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _json(value: Any, key: str, where: str) -> Any:
    """A JSON value, or what the text of one says, without the empty fields that tables add."""
    try:
        value = _without_empty(json.loads(value) if isinstance(value, str) else value)
        _encodable(json.dumps(value, ensure_ascii=False), key, where)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f'{where}: "{key}" is not valid JSON') from error
    return value


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item is not None}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def _reasoning(value: Row, where: str) -> Message:
    said = {key: text(value, key, where) for key in _REASONING if value.get(key)}
    if len(set(said.values())) > 1:
        raise UserError(f"{where}: {' and '.join(said)} differ; remove one of them")
    return {"reasoning_content": next(iter(said.values()))} if said else {}


def _weight(value: Row, role: str, where: str) -> Message:
    """``{"weight": 0}`` of a turn that is not to be learned; one that is says nothing of it."""
    weight = value.get("weight")
    for key in ("train", "training"):
        if value.get(key) is False:
            raise UserError(f'{where}: "{key}" is not read; write "weight": 0 instead')
    if weight is None:
        return {}
    if isinstance(weight, bool) or weight not in (0, 1):
        raise UserError(f'{where}: "weight" must be 0 or 1, found {weight!r}')
    if role != "assistant":
        if weight:
            raise UserError(f'{where}: "weight" 1 of {role} turns: only the assistant is learned')
        return {}
    return {} if weight else {"weight": 0}
