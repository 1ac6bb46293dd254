"""Reading a config: files, comma strings, what a work directory is bound to."""

import difflib
import importlib.util
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ideal_jax.errors import UserError

# Keys and sections that may differ between the start and the continuation of a run. All others
# decide the result. ``configs/base.py`` marks every key; a test keeps the marks and this in step.
RUNTIME = frozenset(
    {
        "data.prefetch",
        "eval.batch_size",
        "influence.batch_size",
        "influence.tangents",
        "logging.progress",
        "loss.block",
        "mesh.fsdp",
        "mesh.replica",
        "mesh.tensor",
        "model.remat",
        "training.checkpoint_every",
        "training.log_every",
    }
)


def load(path: str | pathlib.Path) -> ConfigDict:
    """The config that the file's ``get_config()`` returns.

    Raises:
      UserError: no such file, or no ``get_config`` in it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"--config={path}: no such file")
    spec = importlib.util.spec_from_file_location(f"ideal_jax_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={path}: the file defines no get_config()")
    return module.get_config()


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) of every leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nearest(name: str, known: Any) -> str:
    """`` (did you mean …?)`` for an error message, or nothing."""
    known = list(known)
    last = name.rsplit(".", 1)[-1]
    found = [key for key in known if key.rsplit(".", 1)[-1] == last][:1]
    found = found or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def names(text: str) -> tuple[str, ...]:
    """The names in a comma string; () for an empty one."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(key: str, text: str, kind: type, length: int) -> tuple[Any, ...] | None:
    """The ``length`` numbers in a comma string; None for an empty one.

    Raises:
      UserError: not numbers, or not as many; names ``key``.
    """
    if not text.strip():
        return None
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{key}={text}: expected comma-separated {kind.__name__}s") from None
    if len(values) != length:
        raise UserError(f"{key}={text}: {len(values)} values for {length} domains")
    return values


def choice(key: str, value: str, allowed: Any) -> str:
    """``value`` if it is allowed.

    Raises:
      UserError: otherwise; names ``key`` and what is allowed.
    """
    if value not in allowed:
        raise UserError(f"{key}={value!r} is not one of {', '.join(allowed)}")
    return value


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Result keys whose value differs, as ``key: old -> new``; raising the rounds is no change."""
    before, after = dict(flatten(old)), dict(flatten(new))
    lines = []
    for key in sorted((before.keys() | after.keys()) - RUNTIME):
        was, now = before.get(key), after.get(key)
        more_rounds = key == "mixture.rounds" and was is not None and now is not None and now >= was
        if was != now and not more_rounds:
            lines.append(f"{key}: {json.dumps(was)} -> {json.dumps(now)}")
    return lines

