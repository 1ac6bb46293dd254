"""Raw examples: JSONL(.gz) files, one folder per domain. Every mistake names its file and line."""

import dataclasses
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ideal_jax.config import nearest
from ideal_jax.errors import UserError

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class Record:
    """One conversation.

    Attributes:
      id: the file's own id, or ``<file>:<line>``.
      messages: turns ``{"role", "content"}``, at least one of them by the assistant.
      where: ``<file>:<line>`` it was read from, for error messages.
    """

    id: str
    messages: list[Message]
    where: str

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


class DomainFiles(NamedTuple):
    """The files of one domain; ``test`` is None if the held-out test is to be cut from train."""

    train: Path
    reference: Path
    test: Path | None


def find_domains(root: str | Path, names: Sequence[str] = ()) -> dict[str, DomainFiles]:
    """The domains under ``root``: the named ones in that order, or all of them by name."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data.root {root} does not exist; give a folder with one folder a domain")
    available = sorted(path.name for path in root.iterdir() if _find(path, "train"))
    if not available:
        raise UserError(f"data.root {root} holds no domain; expected {root}/<domain>/train.jsonl")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'data.domains names "{name}" twice')
        if name not in available:
            raise UserError(
                f'data.domains: {root} holds no domain "{name}"{nearest(name, available)}; '
                f"there are {', '.join(available)}"
            )
    return {name: _domain_files(root / name) for name in names or available}


def stop_at(error: UserError) -> None:
    """What becomes of a bad record unless the caller knows better: it ends everything."""
    raise error


def read_domain(
    path: str | Path, refuse: Callable[[UserError], None] = stop_at
) -> Iterator[Record]:
    """The records of one JSONL(.gz) file, in order.

    A line holds ``messages``, or ``prompt`` and ``response``, or Alpaca's ``instruction``,
    ``input`` (optional) and ``output``. Other keys are ignored, and so are blank lines.

    Args:
      path: the file.
      refuse: called with the error of each bad record, which is left out if it returns.
    """
    path = Path(path)
    opener: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    empty = True
    with opener(path, "rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    empty = False
                    try:
                        record = _record(line, f"{path}:{number}")
                    except UserError as error:
                        refuse(error)
                    else:
                        yield record
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}:{number + 1}: not readable as gzip: {error}") from error
    if empty:
        raise UserError(f"{path} holds no examples")


def _domain_files(folder: Path) -> DomainFiles:
    train, reference = _find(folder, "train"), _find(folder, "reference")
    assert train is not None
    if reference is None:
        raise UserError(
            f"{folder}/reference.jsonl does not exist; each domain needs a reference set"
        )
    return DomainFiles(train, reference, _find(folder, "test"))


def _find(folder: Path, split: str) -> Path | None:
    found = [p for p in (folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz") if p.is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1].name} both exist; remove one of them")
    return found[0] if found else None


def _record(line: bytes, where: str) -> Record:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {_kind(value)}")
    identity = value.get("id", "/".join(Path(where).parts[-2:]))
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise UserError(f'{where}: "id" must be a string, found {_kind(identity)}')
    return Record(str(identity), _messages(value, where), where)


def _messages(value: dict[str, Any], where: str) -> list[Message]:
    if "messages" in value:
        messages = _turns(value["messages"], where)
    elif "prompt" in value and "response" in value:
        messages = _exchange(_text(value, "prompt", where), _text(value, "response", where))
    elif "instruction" in value and "output" in value:
        prompt = _text(value, "instruction", where)
        if value.get("input"):
            prompt += "\n\n" + _text(value, "input", where)
        messages = _exchange(prompt, _text(value, "output", where))
    else:
        raise UserError(
            f'{where}: needs "messages", or "prompt" and "response", or "instruction" and "output"'
        )
    if all(message["role"] != "assistant" for message in messages):
        raise UserError(f"{where}: has no assistant turn, so there is nothing to learn")
    return messages


def _turns(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise UserError(f'{where}: "messages" must be a list, found {_kind(value)}')
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            raise UserError(f'{where}: each of "messages" must be an object, found {_kind(turn)}')
        if turn.get("role") not in ROLES:
            raise UserError(
                f'{where}: "role" must be one of {", ".join(ROLES)}, found {turn.get("role")!r}'
            )
        turns.append({"role": turn["role"], "content": _text(turn, "content", where)})
    return turns


def _exchange(prompt: str, response: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _text(value: dict[str, Any], key: str, where: str) -> str:
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
