"""What ``ideal-jax`` says about itself: verbs, their flags and the keys that matter for each."""

import shutil
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from ideal_jax import config as config_lib
from ideal_jax.errors import UserError
from ideal_jax.keys import keys


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
      summary: in a line.
      about: what it does, needs and leaves.
      keys: names and sections of the keys that matter for it.
      flags: its own, as they are written, with their meaning.
      synopsis: its own flags in the line that shows how it is called.
    """

    summary: str
    about: str
    keys: tuple[str, ...] = ()
    flags: dict[str, str] = {}  # noqa: RUF012 (never changed)
    synopsis: str = ""


VERBS = {
    "run": Verb(
        "decide the mixture, train the balanced model, evaluate every round, write the report",
        "Trains on the given mixture, measures what more of each domain would do, moves the"
        " mixture, trains again. Leaves report.html, results.json, rounds/NN/ and the best round's"
        " model in export/. The same command, or --workdir alone, continues an interrupted run;"
        " raising mixture.rounds goes on with a finished one.",
        (
            *("seed", "data.root", "data.domains", "data.tokenizer", "data.row_length"),
            *("data.test_examples", "model.init", "lora.rank", "training.steps", "training.epochs"),
            *("training.batch_size", "training.micro_batches", "training.learning_rate"),
            *("mixture", "influence.estimator", "influence.damping", "influence.fraction"),
            *("influence.budget", "eval.tasks", "mesh", "logging"),
        ),
    ),
    "influence": Verb(
        "measure what more of each domain would do to an existing model",
        "In the work directory of a run (--workdir alone): at the model and mixture of its best"
        " round, or of influence.round; leaves influence/NN/influence.json there. In a new one: at"
        " the model in model.init, with the given mixture; leaves influence/influence.json. Trains"
        " nothing. A second call shows it again.",
        ("influence", "model.init", "data.root", "data.domains", "mixture.counts", "mixture.step"),
    ),
    "verify": Verb(
        "train again with one domain moved and compare with what influence predicts",
        "Trains a round again with one domain's share changed up and down, and holds the measured"
        " slopes of every reference loss against the predicted ones. Of a run that is there,"
        " --workdir alone is enough. Leaves verify/ and adds a section to report.html.",
        ("verify",),
    ),
    "plan": Verb(
        "will it fit, how fast, what will it cost? on --topology=v5p:4x4x8, h100:8 …; --search",
        "Predicts memory, seconds and money of a run on a machine that need not be here, without"
        " data or weights; compiles its programs where that is possible. With --workdir it also"
        " leaves plan/plan.json.",
        ("plan", "mesh", "model.remat", "training.batch_size", "training.micro_batches"),
        {
            "--topology=MACHINE": "v5e:4x8, v5p:4x4x8, 2*v6e:16x16, h100:8, h200:1, cpu:1",
            "--search": "also look for the best mesh, remat and micro-batches",
        },
        "--topology=MACHINE [--search] ",
    ),
    "data": Verb(
        "validate and count the data, find duplicates and leaks; --show=N prints examples",
        "Lists every bad record with file and line; counts examples, tokens and supervised targets;"
        " finds duplicates, and train examples that share text with benchmarks or held-out sets."
        " Trains nothing. Leaves data_check/; a run in the same work directory uses what it has"
        " prepared.",
        ("data",),
        {"--show=N": "print N examples of each domain as the loss sees them"},
        "[--show=N] ",
    ),
    "export": Verb(
        "write the best round's model as a Hugging Face folder (run has done so)",
        "Of a finished run; needs only --workdir. Leaves export/, and adapter/ (PEFT) where"
        " adapters were trained.",
    ),
    "report": Verb(
        "rebuild report.html from the files of a work directory",
        "Needs only --workdir; reads what run, influence and verify have left, finished or not.",
    ),
}

_HEAD = "usage: ideal-jax VERB --config=FILE.py [--config.KEY=VALUE …] --workdir=DIR [--debug]"
_TAIL = """\
FILE.py is a config of your own, or the name of one that comes with the program (quickstart). The
same command continues an interrupted run. On an existing work directory --workdir=DIR is enough.

ideal-jax help VERB   its flags and the keys that matter for it    ideal-jax help KEY   or a section
ideal-jax help keys   every key, as in configs/base.py             ideal-jax --version"""
_COMMON = {
    "--config=FILE.py": "the config: a file, FILE.py:ARGUMENT, or the name of a shipped one",
    "--config.KEY=VALUE": "another value of a key",
    "--workdir=DIR": "where the run and its results live; an existing one knows its config",
    "--debug": "show the traceback of an error",
}


def usage() -> str:
    """All verbs, in a line each."""
    verbs = "\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())
    return f"{_HEAD}\n\n{verbs}\n\n{_TAIL}"


def help_on(topic: str) -> str:
    """About a verb, a key, a section of keys, or all "keys".

    Raises:
      UserError: about none of these.
    """
    if topic in VERBS:
        return _about_verb(topic)
    names = [name for name in keys() if topic == "keys" or _within(name, (topic,))]
    if not names:
        hint = config_lib.nearest(topic, [*VERBS, *keys()])
        raise UserError(f"help {topic}: no verb, key or section of keys{hint}")
    return "\n".join(_about_keys(names))


def _about_verb(name: str) -> str:
    verb, width = VERBS[name], _width()
    config = "" if name == "report" else "[--config=FILE.py] [--config.KEY=VALUE …] "
    workdir = "[--workdir=DIR]" if name == "plan" else "--workdir=DIR"
    call = f"usage: ideal-jax {name} {verb.synopsis}{config}{workdir} [--debug]"
    lines = textwrap.wrap(call, width, subsequent_indent=" " * 11, break_on_hyphens=False)
    lines += ["", *textwrap.wrap(verb.about, width, break_on_hyphens=False), ""]
    common = {k: v for k, v in _COMMON.items() if config or not k.startswith("--config")}
    flags = verb.flags | common
    lines += [line for flag, told in flags.items() for line in _entry(flag, told, 22)]
    chosen = [key for key in keys() if _within(key, verb.keys)]
    if chosen:
        lines += ["", "Keys that matter here, with their defaults in configs/base.py. Those marked"]
        lines += ["[runtime] may change on an existing work directory, the others are its own.", ""]
        lines += _about_keys(chosen)
    return "\n".join(lines)


def _about_keys(names: Iterable[str]) -> list[str]:
    defaults = dict(config_lib.flatten(config_lib.shipped("base")))
    lines = []
    for name in names:
        key = keys()[name]
        told = key.meaning + (" [runtime]" if key.runtime else "")
        if key.limit is not None:
            told += f" ({key.limit})"
        value = defaults.get(name, "")
        lines += _entry(f"{name}={value}", told, 34)
    return lines


def _within(name: str, sections: Iterable[str]) -> bool:
    """Whether a key is one of these, or in one of them."""
    return any(name == part or name.startswith(f"{part}.") for part in sections)


def _entry(head: str, told: str, column: int) -> list[str]:
    """``head`` with ``told`` in a column beside it, or below where it is too long."""
    indent = " " * (column + 2)
    wrapped = textwrap.wrap(
        told, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if len(head) < column:
        return [f"  {head}".ljust(column + 2) + wrapped[0][column + 2 :], *wrapped[1:]]
    return [f"  {head}", *wrapped]


def _width() -> int:
    return max(min(shutil.get_terminal_size().columns, 110), 72)
