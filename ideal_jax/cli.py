"""The command line: ``ideal-jax VERB --config=FILE.py [--config.a.b=value …] --workdir=DIR``."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from ideal_jax import config as config_lib
from ideal_jax.errors import UserError

USAGE = """\
usage: ideal-jax VERB --config=FILE.py [--config.KEY=VALUE …] --workdir=DIR [--debug]

  run      decide the mixture, train the balanced model, evaluate every round, write the report
  report   rebuild report.html from the files of a work directory (needs only --workdir)

configs/base.py explains every KEY. The same command continues an interrupted run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status (0 done, 2 a user's mistake, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    debug = "--debug" in arguments
    try:
        return _dispatch(arguments[0], [a for a in arguments[1:] if a != "--debug"])
    except UserError as error:
        if debug:
            raise
        print(f"ideal-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nideal-jax: interrupted; the same command continues", file=sys.stderr)
        # Not sys.exit: worker threads of a data loader may be mid-read and must not be waited for.
        sys.stdout.flush()
        os._exit(130)


def _dispatch(verb: str, arguments: list[str]) -> int:
    if verb not in _VERBS:
        hint = config_lib.nearest(verb, _VERBS)
        raise UserError(f"unknown verb {verb!r}{hint}; verbs: {', '.join(_VERBS)}")
    return _VERBS[verb](arguments)


def _run(arguments: list[str]) -> int:
    config, workdir = parse(arguments, needs_config=True)
    from ideal_jax import runs  # jax and its backends load only when they are needed

    command = "ideal-jax run " + " ".join(arguments)
    runs.ideal_run(config, workdir, command=command)
    return 0


def _report(arguments: list[str]) -> int:
    _, workdir = parse(arguments, needs_config=False)
    from ideal_jax.report import write_report

    print(f"report: {write_report(workdir)}")
    return 0


_VERBS: dict[str, Callable[[list[str]], int]] = {"run": _run, "report": _report}


def parse(arguments: Sequence[str], *, needs_config: bool) -> tuple[Any, str]:
    """(config, workdir) from a verb's arguments.

    Raises:
      UserError: one line for whatever is wrong with a flag, a key or a value.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    flags.DEFINE_string("workdir", None, "where the run lives", flag_values=values)
    files = [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    if needs_config:
        if not files:
            raise UserError("--config=FILE.py is missing; configs/quickstart.py is a start")
        _check_keys(arguments, config_lib.load(files[-1]))
    try:
        rest = values(["ideal-jax", *arguments])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_one_line(error)) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags look like --workdir=DIR")
    if not values.workdir:
        raise UserError("--workdir=DIR is missing: the run and its results live there")
    return values.config if needs_config else None, values.workdir


def _check_keys(arguments: Sequence[str], config: Any) -> None:
    known = dict(config_lib.flatten(config))
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known:
            hint = config_lib.nearest(match[1], known)
            raise UserError(f"--config.{match[1]}: unknown key{hint}")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = re.sub(r"^flag (--config\.[^=]+)=", r"\1=", text)
    return text.removeprefix("Unknown command line flag ").strip() or type(error).__name__
