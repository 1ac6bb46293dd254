"""The examples of a domain on disk, split into sets, read one at a time."""

import array
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from ideal_jax import sealed
from ideal_jax.data.benchmarks import Benchmarks
from ideal_jax.data.cache import entry
from ideal_jax.data.overlap import examples
from ideal_jax.data.records import Record, label
from ideal_jax.data.sources import Domain, Source, read_domain
from ideal_jax.data.splits import prompt_key, split
from ideal_jax.errors import UserError
from ideal_jax.landing import landing, one_at_a_time

SPLITS = ("train", "reference", "test")
LEAST = 4  # examples of a reference set: it is halved, and a half needs two to have an error
_INDEX = "index.npz"
_TOLD = 4096  # examples between two signs of progress
_NOWHERE: Mapping[str, str] = {}


class Records(Sequence[Record]):
    """N examples that lie in a file, read when asked for.

    Args:
      path: one JSON object a line.
      offsets: int64[N], the byte at which each begins.
      prefix: comes before ``where`` of each.
    """

    def __init__(self, path: Path, offsets: np.ndarray, prefix: str):
        self._path, self._offsets, self._prefix = path, offsets, prefix

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, item: int) -> Record: ...
    @overload
    def __getitem__(self, item: slice | np.ndarray) -> "Records": ...
    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice | np.ndarray):
            return Records(self._path, self._offsets[item], self._prefix)
        return next(iter(self[np.asarray([item])]))

    def __iter__(self) -> Iterator[Record]:
        with self._path.open("rb") as file:
            for offset in self._offsets:
                file.seek(offset)
                value = json.loads(file.readline())
                yield Record(**{**value, "where": self._prefix + value["where"]})


class Collected(NamedTuple):
    """The sets of one domain.

    ``path`` is their entry in the cache, and stands for their content. Left out of train were
    ``overlapping`` examples, whose prompt is in a given other set, and ``contaminated`` ones.
    ``cut`` says how many of the ``eligible`` others each set got that was not given.
    """

    path: Path
    train: Records
    reference: Records
    test: Records
    overlapping: int
    contaminated: int
    cut: Mapping[str, int]
    eligible: int


def collect(
    domain: Domain,
    wanted: Mapping[str, int],
    benchmarks: Benchmarks | None,
    cache: Path,
    progress: Callable[[int], None],
) -> Collected:
    """Read a domain into the cache, unless it is there.

    Args:
      domain: its sources.
      wanted: examples of a "reference" and of a "test" set to cut from train if it has none.
      benchmarks: train examples that share text with them are left out.
      cache: the cache's folder. Processes take turns.
      progress: is told how many examples were read.

    Raises:
      UserError: a bad source, or too few examples to cut from or to train on.
    """
    parts = {part: source for part, source in domain._asdict().items() if source}
    opened = {part: source.open() for part, source in parts.items()}
    content = {
        part: (rows.digest(), list(map(label, rows.names)), parts[part].form, parts[part].fields)
        + ((parts[part].ignore,) if parts[part].ignore else ())
        for part, rows in opened.items()
    }
    cut = {part: examples for part, examples in wanted.items() if part not in parts}
    path = entry(cache, "records", [content, cut, benchmarks.digest() if benchmarks else None])
    with one_at_a_time(path):
        if not is_collected(path):
            _write(path, parts, cut, benchmarks, progress)
    # The content is the same wherever the files lie; errors name where they lie now.
    names = {part: rows.names[0] for part, rows in opened.items()}
    return open_collected(path, {p: name.removesuffix(label(name)) for p, name in names.items()})


def is_collected(path: Path) -> bool:
    """Whether there is a complete entry at ``path``: see `sealed.is_finished`."""
    return sealed.is_finished(path)


def open_collected(path: Path, prefixes: Mapping[str, str] = _NOWHERE) -> Collected:
    """What `collect` left at ``path``.

    Args:
      path: the entry.
      prefixes: of each part, what comes before ``where`` of its examples.
    """
    with np.load(path / _INDEX) as index:
        sets = {}
        for part in SPLITS:
            file = "train" if part in index["cut"] else part
            sets[part] = Records(path / f"{file}.jsonl", index[part], prefixes.get(file, ""))
        cut = {part: len(index[part]) for part in index["cut"].tolist()}
        overlapping, contaminated = int(index["overlapping"]), int(index["contaminated"])
        return Collected(
            path,
            **sets,
            overlapping=overlapping,
            contaminated=contaminated,
            cut=cut,
            eligible=int(index["eligible"]),
        )


def _write(
    path: Path,
    parts: Mapping[str, Source],
    cut: Mapping[str, int],
    benchmarks: Benchmarks | None,
    progress: Callable[[int], None],
) -> None:
    offsets, keys = {}, {}
    for part, source in parts.items():
        with landing(path / f"{part}.jsonl") as partial:
            offsets[part], keys[part] = _copy(source, partial, progress)
    sets = split(
        keys["train"],
        keys.get("reference"),
        keys.get("test"),
        cut.get("reference", 0),
        cut.get("test", 0),
    )
    spec = parts["train"].spec
    if "reference" in cut and len(sets.reference) < LEAST:
        raise UserError(
            f"{spec}: of {sets.eligible} examples only {len(sets.reference)} can be held out as a "
            f"reference set, which needs {LEAST}; give a reference set or more examples"
        )
    for part in cut:
        offsets[part] = offsets["train"][getattr(sets, part)]
    train, contaminated = offsets["train"][sets.train], 0
    if benchmarks:
        records = _told(Records(path / "train.jsonl", train, ""), progress)
        leaks = benchmarks.contaminated(examples(records))
        train, contaminated = np.delete(train, leaks), len(leaks)
    if not len(train):
        held_out = ", ".join(f"{part} set ({len(offsets[part])})" for part in SPLITS[1:])
        raise UserError(
            f"{spec}: no example is left to train on without the prompts of its {held_out} and "
            f"{contaminated} contaminated examples; add examples"
        )
    with landing(path / _INDEX) as partial, partial.open("wb") as file:
        np.savez(
            file,
            **{**offsets, "train": train},
            cut=np.asarray(list(cut), str),
            eligible=sets.eligible,
            overlapping=sets.overlapping,
            contaminated=contaminated,
        )
    names = [_INDEX, *(f"{part}.jsonl" for part in parts)]
    sealed.finish(path, sealed.digests(path, names))


def _copy(
    source: Source, path: Path, progress: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Write a source to one file; (int64[N] where each example begins, uint64[N] prompt keys)."""
    offsets, keys = array.array("q"), array.array("Q")
    with path.open("wb") as file:
        for record in read_domain(source):
            offsets.append(file.tell())
            keys.append(prompt_key(record))
            value = vars(record) | {"where": label(record.where)}
            file.write(json.dumps(value).encode() + b"\n")
            if len(keys) % _TOLD == 0:
                progress(len(keys))
    progress(len(keys))
    return np.array(offsets, np.int64), np.array(keys, np.uint64)


def _told(records: Records, progress: Callable[[int], None]) -> Iterator[Record]:
    for number, record in enumerate(records):
        if number % _TOLD == 0:
            progress(number)
        yield record
