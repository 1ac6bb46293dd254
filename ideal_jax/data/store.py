"""Token stores: one tokenized set on disk, read by example number."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource

from ideal_jax import sealed
from ideal_jax.landing import landing

_RECORDS, _INDEX = "examples.array_record", "index.npz"
_COUNTS = ("truncated", "dropped", "unsupervised")

# What becomes of an example of more tokens than the longest: its beginning, nothing, or all of it
# as several examples.
Overlong = Literal["truncate", "drop", "pieces"]


class Example(NamedTuple):
    """tokens int32[T], of which mask bool[T] are supervised; of the record numbered ``record``."""

    record: int
    id: str
    tokens: np.ndarray
    mask: np.ndarray
    overlong: Overlong = "truncate"


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """N tokenized examples: ``store[i] -> (tokens int32[T], mask bool[T])``.

    The examples lie in ArrayRecord files, one record each: random access without reading the
    rest, zstd-compressed. What planning needs (the counts below) is in memory. Opening is cheap and
    an open store can be pickled.

    Attributes:
      path: its folder.
      lengths: int32[N], tokens of each example.
      supervised: int32[N], supervised targets of each example (masked tokens but the first).
      kept: int32[N], the number of the record that each example is of.
      parts: (ArrayRecord file in the folder, examples in it), in order.
      truncated: examples that were cut to the longest length.
      dropped: examples left out because they were longer.
      unsupervised: examples left out because no supervised target remained.
      digest: SHA-256 of all tokens and masks in order, part by part.
    """

    path: Path
    lengths: np.ndarray
    supervised: np.ndarray
    kept: np.ndarray
    parts: tuple[tuple[str, int], ...]
    truncated: int
    dropped: int
    unsupervised: int
    digest: str

    @classmethod
    def write(
        cls, path: str | Path, examples: Iterable[Example], max_length: int | None = None
    ) -> "TokenStore":
        """Write examples, none longer than ``max_length`` tokens, and open the result.

        A process killed half-way leaves nothing that opens.
        """
        path = Path(path)
        sha = hashlib.sha256()
        lengths, supervised, kept = [], [], []
        counts = dict.fromkeys(_COUNTS, 0)
        with landing(path) as partial:
            partial.mkdir()
            # Groups of one record are what makes random access cheap.
            writer = ArrayRecordWriter(str(partial / _RECORDS), "group_size:1")
            for example in examples:
                for tokens, mask in _fitting(example, max_length, counts):
                    targets = int(np.count_nonzero(mask[1:]))
                    if targets == 0:
                        counts["unsupervised"] += 1
                        continue
                    content = tokens.astype("<i4").tobytes() + mask.astype(np.bool_).tobytes()
                    writer.write(content + example.id.encode())
                    sha.update(len(content).to_bytes(8, "little") + content)
                    lengths.append(len(tokens))
                    supervised.append(targets)
                    kept.append(example.record)
            writer.close()
            index = {"lengths": lengths, "supervised": supervised, "kept": kept}
            arrays = {name: np.asarray(values, np.int32) for name, values in index.items()}
            parts = [(_RECORDS, len(lengths))]
            summary = {"digest": sha.hexdigest(), "parts": parts, **counts}
            _summarise(partial, arrays, summary, sealed.digests(partial, [_RECORDS]))
        return cls.open(path)

    @classmethod
    def join(cls, path: str | Path, names: Iterable[str]) -> "TokenStore":
        """Open the stores ``path/<name>`` in this order as one, from now on at ``path``."""
        path = Path(path)
        stores = [cls.open(path / name) for name in names]
        arrays = {
            name: np.concatenate([np.zeros(0, np.int32), *(getattr(s, name) for s in stores)])
            for name in ("lengths", "supervised", "kept")
        }
        digests = "".join(store.digest for store in stores)
        summary: dict[str, Any] = {name: sum(getattr(s, name) for s in stores) for name in _COUNTS}
        summary["digest"] = hashlib.sha256(digests.encode()).hexdigest()
        summary["parts"] = [
            (f"{store.path.name}/{file}", size) for store in stores for file, size in store.parts
        ]
        files = {
            f"{store.path.name}/{file}": sealed.read(store.path / sealed.SUMMARY)["files"][file]
            for store in stores
            for file, _ in store.parts
        }
        _summarise(path, arrays, summary, files)
        return cls.open(path)

    @classmethod
    def is_whole(cls, path: Path) -> bool:
        """Whether there is a complete one: see `sealed.is_finished`."""
        return sealed.is_finished(path)

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Open what `write` or `join` made."""
        path = Path(path)
        summary = sealed.read(path / sealed.SUMMARY)
        del summary["files"]
        summary["parts"] = tuple((file, size) for file, size in summary["parts"])
        with np.load(path / _INDEX) as index:
            return cls(path=path, **index, **summary)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        item = range(len(self))[item]
        record = self._records[item]
        length = int(self.lengths[item])
        tokens = np.frombuffer(record, "<i4", count=length)
        return tokens, np.frombuffer(record, np.bool_, count=length, offset=tokens.nbytes)

    def id(self, item: int) -> str:
        """The id of the record that an example is of, read from disk."""
        item = range(len(self))[item]
        return self._records[item][int(self.lengths[item]) * 5 :].decode()

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(
            [_Part(str(self.path / file), 0, size, size) for file, size in self.parts]
        )


class _Part(NamedTuple):
    """A file whose number of records is known: ArrayRecord need not open it to count."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def _fitting(
    example: Example, longest: int | None, counts: dict[str, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, mask) of what is stored of an example."""
    _, _, tokens, mask, overlong = Example(*example)
    if longest is None or len(tokens) <= longest:
        yield tokens, mask
    elif overlong == "pieces":
        # Each begins with the last token of the one before, so every token but the first is a
        # target once.
        for start in range(0, len(tokens) - 1, longest - 1):
            yield tokens[start : start + longest], mask[start : start + longest]
    elif overlong == "drop":
        counts["dropped"] += 1
    else:
        counts["truncated"] += 1
        yield tokens[:longest], mask[:longest]


def _summarise(
    folder: Path, arrays: dict[str, np.ndarray], summary: dict[str, Any], files: dict[str, str]
) -> None:
    """The index, then the summary with the digests of all ``files``: the store is complete."""
    with landing(folder / _INDEX) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    files = files | sealed.digests(folder, [_INDEX])
    sealed.finish(folder, files, **summary)
