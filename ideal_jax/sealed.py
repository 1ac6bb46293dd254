"""JSON files that tell when they are damaged, and files whose content is known."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ideal_jax import processes
from ideal_jax.errors import UserError
from ideal_jax.landing import landing

SEAL, SUMMARY = "sha256", "summary.json"


class DamagedError(UserError):
    """A file that is not what was written."""


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` with its own SHA-256 as last entry.

    Wall times do not count, so that what is reproducible has the same seal each time.
    """
    plain = json.loads(json.dumps(value))
    return {**plain, SEAL: _digest(plain)}


def is_whole(value: Any) -> bool:
    """Whether a JSON value is what `seal` made."""
    if not isinstance(value, dict) or SEAL not in value:
        return False
    return bool(value[SEAL] == _digest({key: x for key, x in value.items() if key != SEAL}))


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Seals a value and writes it to ``path``."""
    with landing(path) as partial:
        partial.write_text(json.dumps(seal(value), indent=1))


def read(path: Path) -> dict[str, Any]:
    """What was sealed at ``path``, without its seal.

    Raises:
      FileNotFoundError: nothing is there.
      DamagedError: something else is.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not is_whole(value):
        raise DamagedError(f"{path} is damaged")
    del value[SEAL]
    return dict(value)


def whole(path: Path, then: str = "it is made again") -> dict[str, Any] | None:
    """What was sealed at ``path``; None if nothing is.

    A damaged one is removed, which is said.

    Args:
      path: of the file.
      then: what becomes of a damaged one.
    """
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedError:
        tell(f"{path} is damaged: {then}")
        path.unlink(missing_ok=True)
        return None


def tell(line: str) -> None:
    """Says something once for all processes."""
    if processes.is_writer():
        print(line, flush=True)


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the bytes of files in ``folder``."""
    return {name: _file_digest(folder / name) for name in names}


def are_whole(folder: Path, known: Mapping[str, str]) -> bool:
    """Whether the files in ``folder`` have the digests that are known of them."""
    try:
        return digests(folder, known) == dict(known)
    except (FileNotFoundError, NotADirectoryError):
        return False


def finish(folder: Path, files: Mapping[str, str], **content: Any) -> None:
    """Marks a folder as complete, by a summary with the digests of its files."""
    write(folder / SUMMARY, {**content, "files": dict(files)})


def is_finished(folder: Path) -> bool:
    """Whether a folder is complete, and all bytes of its files are what was written.

    Reads them all: about a second per GB. Of a damaged one the summary is removed, which is said.
    """
    summary = whole(folder / SUMMARY)
    if summary is None or are_whole(folder, summary["files"]):
        return summary is not None
    tell(f"{folder} is damaged: it is made again")
    (folder / SUMMARY).unlink(missing_ok=True)
    return False


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_timeless(value), sort_keys=True).encode()).hexdigest()


def _timeless(value: Any) -> Any:
    """The value with every number of seconds zero."""
    if isinstance(value, dict):
        return {
            key: _no_time(item) if key == "seconds" else _timeless(item)
            for key, item in value.items()
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _no_time(seconds: Any) -> Any:
    if isinstance(seconds, dict):
        return {key: _no_time(item) for key, item in seconds.items()}
    return 0 if isinstance(seconds, int | float) else seconds
