"""Token stores: one tokenized set on disk, read by example number."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource

from ideal_jax.landing import landing

_RECORDS, _INDEX, _SUMMARY = "examples.array_record", "index.npz", "summary.json"


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """N tokenized examples: ``store[i] -> (tokens int32[T], mask bool[T])``.

    The examples lie in an ArrayRecord file, one record each: random access without reading the
    rest, zstd-compressed. What planning needs (the counts below) is in memory. Opening is cheap and
    an open store can be pickled.

    Attributes:
      path: its folder.
      lengths: int32[N], tokens of each example.
      supervised: int32[N], supervised targets of each example (masked tokens but the first).
      kept: int32[N], position of each example in the sequence the store was written from.
      truncated: examples that were cut to the longest length.
      unsupervised: examples left out because no supervised target remained.
      digest: SHA-256 of all tokens and masks in order.
    """

    path: Path
    lengths: np.ndarray
    supervised: np.ndarray
    kept: np.ndarray
    truncated: int
    unsupervised: int
    digest: str

    @classmethod
    def write(
        cls,
        path: str | Path,
        examples: Iterable[tuple[str, np.ndarray, np.ndarray]],
        max_length: int | None = None,
    ) -> "TokenStore":
        """Write (id, tokens, mask) triples, cut to ``max_length`` tokens, and open the result.

        A process killed half-way leaves nothing that opens.
        """
        path = Path(path)
        sha = hashlib.sha256()
        lengths, supervised, kept, ids = [], [], [], []
        truncated = unsupervised = 0
        with landing(path) as partial:
            partial.mkdir()
            # Groups of one record are what makes random access cheap.
            writer = ArrayRecordWriter(str(partial / _RECORDS), "group_size:1")
            for position, (identity, tokens, mask) in enumerate(examples):
                truncated += max_length is not None and len(tokens) > max_length
                tokens, mask = tokens[:max_length], mask[:max_length]
                targets = int(np.count_nonzero(mask[1:]))
                if targets == 0:
                    unsupervised += 1
                    continue
                record = tokens.astype("<i4").tobytes() + mask.astype(np.bool_).tobytes()
                writer.write(record)
                sha.update(len(record).to_bytes(8, "little") + record)
                lengths.append(len(tokens))
                supervised.append(targets)
                kept.append(position)
                ids.append(identity)
            writer.close()
            np.savez(
                partial / _INDEX,
                lengths=np.asarray(lengths, np.int32),
                supervised=np.asarray(supervised, np.int32),
                kept=np.asarray(kept, np.int32),
            )
            summary = {
                "digest": sha.hexdigest(),
                "truncated": truncated,
                "unsupervised": unsupervised,
                "ids": ids,
            }
            (partial / _SUMMARY).write_text(json.dumps(summary))
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Open what `write` wrote."""
        path = Path(path)
        summary = json.loads((path / _SUMMARY).read_text())
        del summary["ids"]
        with np.load(path / _INDEX) as index:
            return cls(path=path, **index, **summary)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        item = range(len(self))[item]
        record = self._records[item]
        tokens = np.frombuffer(record, "<i4", count=self.lengths[item])
        return tokens, np.frombuffer(record, np.bool_, offset=tokens.nbytes)

    @property
    def ids(self) -> list[str]:
        """The N ids, read from disk."""
        return json.loads((self.path / _SUMMARY).read_text())["ids"]

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(str(self.path / _RECORDS))
