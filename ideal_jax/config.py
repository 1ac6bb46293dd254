"""Reading a config: files, overrides, comma strings, limits, what a work directory is bound to."""

import difflib
import importlib.util
import inspect
import json
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ideal_jax.errors import UserError
from ideal_jax.keys import CONFIGS, keys, shown


def _boolean(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


# How a value on the command line is read, by the type that the config file gives its key.
_PARSERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (_boolean, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
}


def shipped(name: str) -> ConfigDict:
    """The config of that name that comes with the package: ``shipped("quickstart")``.

    Raises:
      UserError: there is none (names all).
    """
    return load(_shipped_file(name))


def load(path: str | pathlib.Path) -> ConfigDict:
    """The config that the file's ``get_config()`` returns, locked but for ``data.sources``.

    ``FILE.py:TEXT`` calls ``get_config(TEXT)``. A name alone, ``NAME`` or ``NAME:TEXT``, means a
    config that comes with the package.

    Raises:
      UserError: no such file, it does not run (names the line), or it gives no config.
    """
    if re.fullmatch(r"[\w-]+(:.*)?", str(path)):
        path = _shipped_file(str(path))
    name, colon, argument = str(path).partition(".py:")
    path = pathlib.Path(f"{name}.py" if colon else path)
    if not is_file(path):
        known = path.parent.name == CONFIGS.name and (CONFIGS / path.name).is_file()
        hint = f"; --config={path.stem} is the one that comes with the program" if known else ""
        raise UserError(f"--config={shown(str(path))}: no such file{hint}")
    spec = importlib.util.spec_from_file_location(f"ideal_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path}: not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config={path}: the file defines no get_config()")
        if argument and not inspect.signature(module.get_config).parameters:
            raise UserError(f"--config={path}:{argument}: its get_config() takes no argument")
        config = module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except Exception as error:
        # ConfigDict lists a whole section after saying what is wrong with one key of it.
        text = re.sub(r"^'(Key .*)'$", r"\1", str(error).replace("\\n", " "))
        reason = " ".join(re.sub(r' Other fields present: ".*?}"', "", text).split())
        raise UserError(f"{_where(path, error)}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={path}: get_config() gives {type(config).__name__}, no ConfigDict"
        )
    config.lock()
    if "sources" in config.get("data", ()):
        config.data.sources.unlock()  # a file built on this one adds domains
    return config


def restored(values: Mapping[str, Any]) -> ConfigDict:
    """The config that was recorded as ``values``; keys that were not known then have defaults."""
    config = shipped("base")
    known = dict(flatten(config))
    given = {key: value for key, value in flatten(values) if key in known}
    config.update_from_flattened_dict(given)
    config.data.sources = ConfigDict(values.get("data", {}).get("sources", {}))
    return config


def with_argument(path: str, argument: str) -> str:
    """``FILE.py:ARGUMENT`` if the file's ``get_config`` takes one, else ``FILE.py``."""
    if re.fullmatch(r"[\w-]+", path):
        path = _shipped_file(path)
    text = pathlib.Path(path).read_text() if is_file(pathlib.Path(path)) else ""
    return f"{path}:{argument}" if re.search(r"def get_config\(\w", text) else path


def is_file(path: pathlib.Path) -> bool:
    """Whether there is such a file; none has a name that the system does not take."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _shipped_file(name: str) -> str:
    """The path of a shipped config, with the argument behind it if one is given."""
    stem, colon, argument = name.partition(":")
    if not (CONFIGS / f"{stem}.py").is_file():
        known = sorted(path.stem for path in CONFIGS.glob("*.py"))
        raise UserError(
            f"--config={shown(name)}: no shipped config{nearest(stem, known)}; there are "
            f"{', '.join(known)}. A file of your own ends in .py"
        )
    return f"{CONFIGS / stem}.py{colon}{argument}"


def _where(path: pathlib.Path, error: Exception) -> str:
    """``file:line`` of the newest frame in the config file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if pathlib.Path(f.filename).resolve() == path.resolve()]
    return f"{path}:{lines[-1]}" if lines else str(path)


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets ``key`` ("a.b") to what ``text`` means for the type it has.

    Raises:
      UserError: unknown key (names the nearest), or another type (names the expected one).
    """
    known = dict(flatten(config))
    if key not in known:
        inside = [name for name in known if name.startswith(f"{key}.")]
        if inside:
            raise UserError(f"--config.{key} is a section; set a key in it, such as {inside[0]}")
        raise UserError(f"--config.{key}: unknown key{nearest(key, known)}")
    kind = type(known[key])
    if kind not in _PARSERS:
        raise UserError(f"--config.{key}: only the config file can set a {kind.__name__}")
    parse, expected = _PARSERS[kind]
    try:
        value = parse(text)
    except (KeyError, ValueError):
        raise UserError(f"--config.{key}={shown(text)}: expected {expected}") from None
    config.update_from_flattened_dict({key: value})


def check(config: Mapping[str, Any], prefix: str = "") -> None:
    """Everything about single values that can be told before any work.

    Args:
      config: all of it, or with ``prefix`` ("data.") the section, or the part of it there is.

    Raises:
      UserError: names the key, its value and what it must be.
    """
    found = dict(flatten(config, prefix))
    for name, key in keys().items():
        if name in found and key.limit is not None:
            key.limit.check(name, found[name])
        elif not prefix and key.limit is not None:
            raise UserError(f"the config has no key {name}; configs/base.py shows them all")


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) of every leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` for an error message, or nothing."""
    known = list(known)

    def last(key: str) -> str:
        return key.rsplit(".", 1)[-1]

    same = [key for key in known if last(key) == last(name)]
    found = difflib.get_close_matches(name, same, n=1, cutoff=0.0)
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
    """Result keys whose value differs, as ``key: old -> new``; what lets a run go on is no change.

    That is: more ``mixture.rounds``, and ``mixture.stop=False``.
    """
    before, after = dict(flatten(old)), dict(flatten(new))
    lines = []
    runtime = {key.name for key in keys().values() if key.runtime}
    for key in sorted((before.keys() | after.keys()) - runtime):
        was, now = before.get(key), after.get(key)
        more_rounds = key == "mixture.rounds" and was is not None and now is not None and now >= was
        goes_on = more_rounds or (key == "mixture.stop" and now is False)
        if was != now and not goes_on:
            lines.append(f"{key}: {json.dumps(was)} -> {json.dumps(now)}")
    return lines
