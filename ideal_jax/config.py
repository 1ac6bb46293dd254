"""Reading a config: files, overrides, comma strings, limits, what a work directory is bound to."""

import difflib
import importlib.util
import inspect
import json
import math
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ideal_jax.errors import UserError

# Keys and sections that may differ between the start and the continuation of a run. All others
# decide the result. ``configs/base.py`` marks every key; a test keeps the marks and this in step.
RUNTIME = frozenset(
    {
        "data.benchmarks",
        "data.cache",
        "data.prefetch",
        "data.workers",
        "eval.batch_size",
        "influence.batch_size",
        "influence.layer_groups",
        "influence.tangents",
        "logging.progress",
        "logging.tensorboard",
        "logging.trace",
        "loss.block",
        "mesh.fsdp",
        "mesh.replica",
        "mesh.slices",
        "mesh.tensor",
        "model.attention",
        "model.remat",
        "model.unroll",
        "plan.compile",
        "plan.example_tokens",
        "plan.examples",
        "plan.model",
        "plan.price",
        "plan.search",
        "plan.topology",
        "training.checkpoint_every",
        "training.log_every",
        "verify.changes",
        "verify.domains",
        "verify.estimators",
        "verify.method",
        "verify.orders",
        "verify.round",
    }
)


# What a number may be, and the keys it is asked of. ``data.prepare`` checks the data section and
# ``influence.Options`` its own fields.
_LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
    "must be at least 1": (
        lambda x: x >= 1,
        """data.prefetch model.d_model model.n_layers model.n_heads model.n_kv_heads model.head_dim
        model.d_ff model.unroll base.examples base.batch_size training.batch_size
        training.micro_batches training.checkpoint_every training.log_every loss.block
        mixture.max_repetition verify.orders plan.examples plan.example_tokens
        influence.curvature_examples influence.batch_size eval.max_new_tokens eval.batch_size""",
    ),
    "must be at least 2, or there is no error bar": (
        lambda x: x >= 2,
        "influence.reference_examples influence.spread_examples eval.examples",
    ),
    "must be at least 0": (
        lambda x: x >= 0,
        """base.steps training.steps training.epochs training.weight_decay mixture.rounds
        mixture.examples influence.tangents influence.budget verify.round plan.price
        lora.rank""",
    ),
    "must be above 0": (
        lambda x: x > 0,
        """model.rope_theta model.norm_eps base.learning_rate training.learning_rate
        training.epsilon training.clip_norm lora.alpha""",
    ),
    "must be in [0, 1]": (
        lambda x: 0 <= x <= 1,
        """training.warmup training.final_learning_rate mixture.min_share influence.fraction""",
    ),
    "must be in [0, 1)": (lambda x: 0 <= x < 1, "training.beta1 training.beta2 lora.dropout"),
    "must be in (0, 1)": (lambda x: 0 < x < 1, "mixture.step influence.confidence"),
    "must be in 0..4294967295": (lambda x: 0 <= x < 2**32, "seed"),
}


def _boolean(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


# How a value on the command line is read, by the type that the config file gives its key.
_PARSERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (_boolean, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
}


def load(path: str | pathlib.Path) -> ConfigDict:
    """The config that the file's ``get_config()`` returns, locked but for ``data.sources``.

    ``FILE.py:TEXT`` calls ``get_config(TEXT)``.

    Raises:
      UserError: no such file, it does not run (names the line), or it gives no config.
    """
    name, colon, argument = str(path).partition(".py:")
    path = pathlib.Path(f"{name}.py" if colon else path)
    if not path.is_file():
        raise UserError(f"--config={path}: no such file")
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


def with_argument(path: str, argument: str) -> str:
    """``FILE.py:ARGUMENT`` if the file's ``get_config`` takes one, else ``FILE.py``."""
    file = pathlib.Path(path)
    text = file.read_text() if file.is_file() else ""
    return f"{path}:{argument}" if re.search(r"def get_config\(\w", text) else path


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
        raise UserError(f"--config.{key}={text}: expected {expected}") from None
    config.update_from_flattened_dict({key: value})


def check(config: ConfigDict) -> None:
    """Everything about single numbers that can be told before any work.

    Raises:
      UserError: names the key, its value and what it must be.
    """
    known = dict(flatten(config))
    for key, value in known.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")
    for rule, (holds, keys) in _LIMITS.items():
        for key in keys.split():
            if key not in known:
                raise UserError(f"the config has no key {key}; configs/base.py shows them all")
            if not holds(known[key]):
                raise UserError(f"{key}={known[key]}: {rule}")


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
    for key in sorted((before.keys() | after.keys()) - RUNTIME):
        was, now = before.get(key), after.get(key)
        more_rounds = key == "mixture.rounds" and was is not None and now is not None and now >= was
        goes_on = more_rounds or (key == "mixture.stop" and now is False)
        if was != now and not goes_on:
            lines.append(f"{key}: {json.dumps(was)} -> {json.dumps(now)}")
    return lines
