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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ideal_jax
from ideal_jax import config as config_lib
from ideal_jax import usage
from ideal_jax.errors import Terminated, UserError
from ideal_jax.keys import PathText, shown

# What the machine refuses is no fault of the program: told in one line too.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status (0 done, 2 a user's mistake, 130 or 143 stopped)."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    arguments = [argument for argument in given if argument != "--debug"]
    if not arguments:
        print(usage.usage())
        return 2
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        if debug:
            raise
        return _refuse(str(error))
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
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
    line = " ".join(message.split("\n"))
    print(f"ideal-jax: {line}".encode(errors="replace").decode(), file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> int:
    verb, *rest = arguments
    if "--version" in arguments:
        print(f"ideal-jax {ideal_jax.__version__}")
        return 0
    if verb in ("help", "-h", "--help") or {"-h", "--help"} & set(rest):
        topics = [name for name in arguments if name not in ("help", "-h", "--help")]
        print(usage.help_on(topics[0]) if topics else usage.usage())
        return 0
    if verb.startswith("-"):
        raise UserError(f"the verb comes first, as in: ideal-jax run {verb}; verbs: {_names()}")
    if verb not in _VERBS:
        hint = config_lib.nearest(verb, _VERBS)
        raise UserError(f"unknown verb {shown(verb, quoted=True)}{hint}; verbs: {_names()}")
    return _VERBS[verb](rest)


def _names() -> str:
    return ", ".join(_VERBS)


def _with_config(name: str, arguments: list[str]) -> int:
    """A verb of ``runs`` that takes a config."""
    config, workdir = parse(arguments)
    runs = _load_runs()
    verb = {
        "run": runs.ideal_run,
        "influence": runs.influence_run,
        "verify": runs.verify_run,
        "export": runs.export_run,
    }[name]
    verb(config, workdir, command=_command(name, arguments, workdir))
    return 0


def _command(name: str, arguments: list[str], workdir: Path) -> str:
    """The command to put on record; "": what is there stays."""
    from ideal_jax.runs.workdir import recorded_command

    pairs, first = list(_pairs(arguments)), recorded_command(workdir)
    if first and name != "run":
        return ""
    if "config" in dict(pairs) or not first.startswith(f"ideal-jax {name} "):
        return " ".join(("ideal-jax", name, *arguments))
    changes = [f"--{key}={value}" for key, value in pairs if key.startswith("config.")]
    return " ".join((first, *(change for change in changes if change not in first.split())))


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
    pairs = list(_pairs(arguments, "show"))
    show = dict(pairs).get("show", "0")
    if not (show.isdecimal() and len(show) < 10):
        raise UserError(f"--show={shown(show)}: expected how many examples of each domain to print")
    config, workdir = _resolve([pair for pair in pairs if pair[0] != "show"])
    runs = _load_runs()
    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy and is not needed
    runs.data_run(config, workdir, show=int(show))
    return 0


def _plan(arguments: list[str]) -> int:
    arguments = ["--search=true" if a == "--search" else a for a in arguments]
    short = {"topology": "config.plan.topology", "search": "config.plan.search"}
    pairs = [(short.get(name, name), value) for name, value in _pairs(arguments, *short)]
    values = dict(pairs)
    machine = values.get("config.plan.topology", "")
    if machine and "config" in values and not re.search(r"\.py:|^[\w-]+:", values["config"]):
        # A config that has a setting for each kind of machine gives that of this one.
        pairs.append(("config", config_lib.with_argument(values["config"], machine)))
    config, workdir = _resolve(pairs, needs_workdir=False)
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
    arguments: Sequence[str], *, needs_config: bool = True, needs_workdir: bool = True
) -> tuple[Any, Any]:
    """(config, workdir) from a verb's arguments; the last of a repeated flag counts.

    An existing work directory has its own config: ``--config`` need not be given, and what
    ``--config.KEY=VALUE`` changes of it is up to the verb. What is not needed and not given is
    None.

    Raises:
      UserError: one line for whatever is wrong with a flag, a key or a value.
    """
    return _resolve(_pairs(arguments), needs_config=needs_config, needs_workdir=needs_workdir)


def _resolve(
    pairs: Iterable[tuple[str, str]], *, needs_config: bool = True, needs_workdir: bool = True
) -> tuple[Any, Any]:
    """See ``parse``."""
    values = dict(pairs)
    workdir = _workdir(values.get("workdir", ""), needs_workdir)
    overrides = {
        name.removeprefix("config."): value
        for name, value in values.items()
        if name.startswith("config.")
    }
    config = None
    if needs_config or values.get("config") or overrides:
        config = config_lib.load(values["config"]) if values.get("config") else _bound(workdir)
    for key, value in overrides.items():
        config_lib.override(config, key, value)
    return config, workdir


def _workdir(text: str, needed: bool) -> Path | None:
    if not text:
        if needed:
            raise UserError("--workdir=DIR is missing: the run and its results live there")
        return None
    if "://" in text:
        raise UserError(
            f"--workdir={shown(text)}: not a folder; docs/launch.md tells how to share one"
        )
    PathText().check("--workdir", text)
    return Path(text).expanduser()  # the shell does not expand the tilde of --workdir=~/x


def _bound(workdir: Path | None) -> Any:
    """The config of an existing work directory."""
    if workdir is None or not config_lib.is_file(workdir / "config.json"):
        there = "" if workdir is None else f" (there is no run in {workdir} to go on with)"
        raise UserError(f"--config=FILE.py is missing{there}; --config=quickstart is a start")
    from ideal_jax.runs.workdir import bound_config

    try:
        return config_lib.restored(bound_config(workdir))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{workdir / 'config.json'}: no config that can be read: {error}") from None


def _pairs(arguments: Sequence[str], *own: str) -> Iterator[tuple[str, str]]:
    """(name, value) of every ``--name=value`` or ``--name value``; ``own`` are the verb's flags.

    Raises:
      UserError: no flag, an unknown one, or one without a value.
    """
    known, rest = ("config", "workdir", *own), iter(arguments)
    for argument in rest:
        match = re.fullmatch(r"--?([A-Za-z][^=]*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            raise UserError(
                f"unexpected argument {shown(argument, quoted=True)}; flags look like --workdir=DIR"
            )
        name, value = match[1], match[2]
        if name in ("debug", "help", "version"):
            raise UserError(f"--{name} takes no value")
        if name not in known and not name.startswith("config."):
            hint = config_lib.nearest(name.partition(".")[0], (*known, "debug"))
            hint = hint.replace("mean ", "mean --")
            raise UserError(f"--{shown(name)}: unknown flag{hint}")
        if value is None:
            value = next(rest, None)
            if value is None or value.startswith("--"):
                raise UserError(f"--{name}: needs a value, as in --{name}=VALUE")
        yield name, value
