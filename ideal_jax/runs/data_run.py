"""``ideal-jax data``: is the data valid, how much is there, and what must not be in it."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ideal_jax import config as config_lib
from ideal_jax.data import Dataset, prepare
from ideal_jax.data.benchmarks import Benchmarks
from ideal_jax.data.collect import SPLITS, Records
from ideal_jax.data.duplicates import duplicates
from ideal_jax.data.overlap import Hit, Index, Item, examples, record_texts
from ideal_jax.data.records import Record
from ideal_jax.data.sources import is_built_in
from ideal_jax.landing import landing
from ideal_jax.runs.data_examples import print_examples
from ideal_jax.runs.data_tables import print_check
from ideal_jax.runs.data_valid import validate
from ideal_jax.runs.influence_options import check_influence
from ideal_jax.runs.model_tokenizer import Choice, check_vocabulary, choose_tokenizer
from ideal_jax.runs.progress import Advance, Reporter
from ideal_jax.runs.session import data_section, tell_left_out, tell_tokenizer
from ideal_jax.runs.workdir import WorkDir, write_json

# A held-out prompt and a train prompt are often written with one template: a single n-gram in
# common says nothing, half of all of them does.
HELD_OUT_SHARE = 0.5
# Below this share of a benchmark's item, most of what is shared is an idiom (docs/data_checks.md).
CLEAR_SHARE = 0.1
_BINS = 12  # of the histograms of lengths
_TOLD = 512  # examples between two signs of progress

Row = dict[str, Any]


def data_run(config: Any, workdir: str | pathlib.Path, *, show: int = 0) -> dict[str, Any]:
    """Validates, prepares and counts the data of a run, and looks for duplicates and leaks.

    Trains nothing. A run with the same work directory uses the data that this has prepared. Writes
    ``data_check/``: ``summary.json`` and every pair in ``contamination.jsonl``,
    ``held_out.jsonl`` and ``duplicates.jsonl``; prints the counts, the first pairs, and ``show``
    examples per domain as the loss sees them.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: bad records (all are listed first), or whatever keeps a run from starting.
    """
    config_lib.check(config)
    check_influence(config)
    benchmarks = Benchmarks(config.data.benchmarks)
    tokenizer = choose_tokenizer(config)
    folder = WorkDir(workdir, config).path
    reporter = Reporter(config.logging.progress)
    data = _prepared(config, tokenizer, folder / "data", reporter)
    check_vocabulary(config, data.tokenizer)
    check = folder / "data_check"
    pairs: dict[str, list[Row]] = {}
    with reporter.phase("benchmarks") as advance:
        pairs["contamination"] = list(_contamination(data, benchmarks, advance))
    with reporter.phase("held-out sets") as advance:
        pairs["held_out"] = list(_held_out(data, advance))
    with reporter.phase("duplicates") as advance:
        pairs["duplicates"] = list(_duplicates(data, advance))
    for name, rows in pairs.items():
        with landing(check / f"{name}.jsonl") as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    summary = {
        "digest": data.digest,
        "row_length": config.data.row_length,
        "left_out": data.left_out,
        "sets": [_counted(data, name, part) for name in data.names for part in SPLITS],
        "contamination": _totals(pairs["contamination"], ("domain", "split", "benchmark")),
        "held_out": _totals(pairs["held_out"], ("domain", "set")),
        "duplicates": _totals(pairs["duplicates"], ("domain", "kind")),
        "benchmarks": benchmarks.names,
    }
    write_json(check / "summary.json", summary)
    print_check(reporter.console, summary, pairs)
    tell_left_out(data, reporter)
    print_examples(reporter.console, data, config.data.row_length, show)
    reporter.say(f"data check: {check}")
    return summary


def _prepared(config: Any, tokenizer: Choice, folder: pathlib.Path, reporter: Reporter) -> Dataset:
    section = data_section(config, tokenizer)
    tell_tokenizer(tokenizer, reporter)
    if (folder / "dataset.json").exists():
        reporter.say(
            f"{folder} was prepared before; if files have changed since, use another --workdir",
        )
    elif not is_built_in(section):
        validate(section, reporter)
    with reporter.phase("prepare", {"tokenize": 1.0}) as advance:

        def progress(name: str, done: int, total: int | None) -> None:
            advance(done, total, name)

        return prepare(section, folder, config.seed, progress, tokenizer.own)


def _contamination(data: Dataset, benchmarks: Benchmarks, advance: Advance) -> Iterator[Row]:
    """Pairs of an example and a benchmark's item."""
    if not benchmarks.names:
        return
    advance(0, None, "read")
    index = benchmarks.index
    for name in data.names:
        for part in SPLITS:
            told = _told(_used(data, name, part), advance, f"{name}/{part}")
            for hit in index.hits(examples(told)):
                where = {"domain": name, "split": part, "benchmark": benchmarks.name(hit.item)}
                yield where | _pair(hit, index)


def _held_out(data: Dataset, advance: Advance) -> Iterator[Row]:
    """Pairs of a train example and a prompt of the reference or test set of the domain."""
    for name in data.names:
        for part in SPLITS[1:]:
            index = Index(Item(r.where, _asked(r)) for r in _used(data, name, part))
            told = _told(_used(data, name, "train"), advance, f"{name}, {part}")
            for hit in index.hits(examples(told)):
                if hit.share >= HELD_OUT_SHARE:
                    yield {"domain": name, "set": part} | _pair(hit, index)


def _asked(record: Record) -> list[str]:
    """What a record asks; a text asks all it says. Answers repeat without giving anything away."""
    return (
        record_texts(record) if record.text is not None else [m["content"] for m in record.prompt]
    )


def _duplicates(data: Dataset, advance: Advance) -> Iterator[Row]:
    """Train examples that repeat an earlier one of the domain."""
    for name in data.names:
        train = _used(data, name, "train")

        def read(name: str = name, train: Records = train) -> Iterator[str]:
            return ("\n".join(record_texts(record)) for record in _told(train, advance, name))

        found = duplicates(read)
        for kind, of in (("exact", found.exact), ("near", found.near)):
            for number in np.flatnonzero(of >= 0).tolist():
                yield {
                    "domain": name,
                    "kind": kind,
                    "example": train[number].where,
                    "of": train[int(of[number])].where,
                    "similarity": 1.0 if kind == "exact" else float(found.similarity[number]),
                }


def _used(data: Dataset, name: str, part: str) -> Records:
    """The records of a set that a run sees, each once."""
    records: Records = getattr(data.collected[name], part)
    return records[np.unique(getattr(data, part)[name].kept)]


def _told(records: Records, advance: Advance, note: str) -> Iterator[Record]:
    for number, record in enumerate(records):
        if number % _TOLD == 0:
            advance(number, len(records), note)
        yield record


def _pair(hit: Hit, index: Index) -> Row:
    return {
        "example": hit.where,
        "item": index.where[hit.item],
        "share": hit.share,
        "shared": hit.shared,
    }


def _counted(data: Dataset, name: str, part: str) -> Row:
    store = getattr(data, part)[name]
    longest = int(store.lengths.max(initial=0))
    counts, edges = np.histogram(store.lengths, bins=_BINS, range=(0, max(_BINS, longest)))
    return {
        "domain": name,
        "split": part,
        "examples": len(store),
        "tokens": int(store.lengths.sum()),
        "supervised": int(store.supervised.sum()),
        "truncated": store.truncated,
        "median": int(np.median(store.lengths)) if len(store) else 0,
        "longest": longest,
        "lengths": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _totals(rows: Iterable[Row], keys: Sequence[str]) -> list[Row]:
    """How many pairs and different examples, by the values of ``keys``; "clear" are the examples
    that have at least `CLEAR_SHARE` of an item."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        {
            **dict(zip(keys, group, strict=True)),
            "pairs": len(of),
            "examples": len({row["example"] for row in of}),
            "clear": len({row["example"] for row in of if row.get("share", 1) >= CLEAR_SHARE}),
        }
        for group, of in found.items()
    ]
