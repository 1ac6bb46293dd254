"""The command line: ``ideal-jax VERB --config=FILE.py [--config.a.b=value …] --workdir=DIR``.

The flags have the syntax of ml-collections' config_flags. They are read here because config_flags
looks at the whole process's ``sys.argv``, runs the config file twice and does not say what it
expected.
"""

import errno
import functools
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ideal_jax import config as config_lib
from ideal_jax.errors import Terminated, UserError

USAGE = """\
usage: ideal-jax VERB --config=FILE.py [--config.KEY=VALUE …] --workdir=DIR [--debug]

  run        decide the mixture, train the balanced model, evaluate every round, write the report
  influence  measure at the model in --config.model.init what more of each domain would do
  verify     train again with one domain moved and compare with what influence predicts
  plan       will it fit, how fast, what will it cost? on --topology=v5p:4x4x8, h100:8 …; --search
  data       validate and count the data, find duplicates and leaks; --show=N prints examples
  export     write the best round's model as a Hugging Face folder (run has done so)
  report     rebuild report.html from the files of a work directory (needs only --workdir)

configs/base.py explains every KEY. The same command continues an interrupted run."""

# What the machine refuses is no fault of the program: told in one line too.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status (0 done, 2 a user's mistake, 130 or 143 stopped)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(USAGE)
        return 0 if arguments else 2
    debug = "--debug" in arguments
    try:
        return _dispatch(arguments[0], [a for a in arguments[1:] if a != "--debug"])
    except UserError as error:
        if debug:
            raise
        return _refuse(str(error))
    except OSError as error:
        if debug or error.errno not in _REFUSED:
            raise
        return _refuse(f"{error.filename or 'the disk'}: {error.strerror}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _stop(130, "\nideal-jax: interrupted; the same command continues")
    except Terminated:
        from ideal_jax import processes

        processes.leave()
        _stop(143, "ideal-jax: told to end; everything is saved and the same command continues")


def _stop(status: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    # Not sys.exit: worker threads of a data loader may be mid-read and must not be waited for.
    sys.stdout.flush()
    os._exit(status)


def _refuse(message: str) -> int:
    print(f"ideal-jax: {message}", file=sys.stderr)
    return 2


def _dispatch(verb: str, arguments: list[str]) -> int:
    if verb not in _VERBS:
        hint = config_lib.nearest(verb, _VERBS)
        raise UserError(f"unknown verb {verb!r}{hint}; verbs: {', '.join(_VERBS)}")
    return _VERBS[verb](arguments)


def _with_config(name: str, arguments: list[str]) -> int:
    """A verb of ``runs`` that takes a config."""
    config, workdir = parse(arguments, needs_config=True)
    runs = _load_runs()
    verb = {
        "run": runs.ideal_run,
        "influence": runs.influence_run,
        "verify": runs.verify_run,
        "export": runs.export_run,
    }[name]
    verb(config, workdir, command=" ".join(("ideal-jax", name, *arguments)))
    return 0


def _load_runs() -> Any:
    """The verbs. JAX and its backends load, which takes seconds, only when they are needed."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        print("ideal-jax: starting …", flush=True)
        return importlib.import_module("ideal_jax.runs")
    with console.status("starting …"):
        return importlib.import_module("ideal_jax.runs")


def _data(arguments: list[str]) -> int:
    pairs = list(_pairs(arguments))
    show = dict(pairs).get("show", "0")
    if not show.isdecimal():
        raise UserError(f"--show={show}: expected how many examples of each domain to print")
    rest = [f"--{name}={value}" for name, value in pairs if name != "show"]
    config, workdir = parse(rest, needs_config=True)
    runs = _load_runs()
    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy and is not needed
    runs.data_run(config, workdir, show=int(show))
    return 0


def _plan(arguments: list[str]) -> int:
    arguments = ["--search=true" if a == "--search" else a for a in arguments]
    short = {"topology": "config.plan.topology", "search": "config.plan.search"}
    pairs = [(short.get(name, name), value) for name, value in _pairs(arguments)]
    values = dict(pairs)
    machine = values.get("config.plan.topology", "")
    if machine and ".py:" not in values.get("config", ".py:"):
        # A config that has a setting for each kind of machine gives that of this one.
        pairs.append(("config", config_lib.with_argument(values["config"], machine)))
    rest = [f"--{name}={value}" for name, value in pairs]
    config, workdir = parse(rest, needs_config=True, needs_workdir=False)
    runs = _load_runs()
    import jax

    jax.config.update("jax_platforms", "cpu")  # the machine that is planned is another
    runs.plan_run(config, workdir)
    return 0


def _report(arguments: list[str]) -> int:
    _, workdir = parse(arguments, needs_config=False)
    from ideal_jax.report import write_report

    print(f"report: {write_report(workdir)}")
    return 0


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": functools.partial(_with_config, "run"),
    "influence": functools.partial(_with_config, "influence"),
    "verify": functools.partial(_with_config, "verify"),
    "export": functools.partial(_with_config, "export"),
    "plan": _plan,
    "data": _data,
    "report": _report,
}


def parse(
    arguments: Sequence[str], *, needs_config: bool, needs_workdir: bool = True
) -> tuple[Any, Any]:
    """(config, workdir) from a verb's arguments; the last of a repeated flag counts.

    What is not needed and not given is None.

    Raises:
      UserError: one line for whatever is wrong with a flag, a key or a value.
    """
    pairs = list(_pairs(arguments))
    for name, _ in pairs:
        if name not in ("config", "workdir") and not name.startswith("config."):
            hint = config_lib.nearest(f"--{name}", ("--config", "--workdir", "--debug"))
            raise UserError(f"--{name}: unknown flag{hint}")
    values = dict(pairs)
    config = None
    if needs_config:
        if not values.get("config"):
            raise UserError("--config=FILE.py is missing; configs/quickstart.py is a start")
        config = config_lib.load(values["config"])
        for name, value in values.items():
            if name.startswith("config."):
                config_lib.override(config, name.removeprefix("config."), value)
    if not values.get("workdir"):
        if not needs_workdir:
            return config, None
        raise UserError("--workdir=DIR is missing: the run and its results live there")
    workdir = values["workdir"]
    if "://" in workdir:
        raise UserError(f"--workdir={workdir}: not a folder; docs/launch.md tells how to share one")
    # The shell does not expand the tilde of --workdir=~/x.
    return config, Path(workdir).expanduser()


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of every ``--name=value`` or ``--name value``."""
    rest = iter(arguments)
    for argument in rest:
        match = re.fullmatch(r"--?([A-Za-z][^=]*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            raise UserError(f"unexpected argument {argument!r}; flags look like --workdir=DIR")
        value = match[2] if match[2] is not None else next(rest, None)
        if value is None:
            raise UserError(f"{argument}: needs a value, as in {argument}=VALUE")
        yield match[1], value
