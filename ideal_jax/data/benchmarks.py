"""Benchmarks to keep out of the training data: files of items, read by what they say."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ideal_jax import config as config_lib
from ideal_jax.data.files import SUFFIXES, Files, digest_of, strings
from ideal_jax.data.overlap import Example, Index, Item
from ideal_jax.errors import UserError


class Benchmarks:
    """The files that ``data.benchmarks`` names; a folder stands for all in it.

    Args:
      spec: comma-separated.

    Raises:
      UserError: no such file or folder, or two of one name.
    """

    def __init__(self, spec: str):
        self._files: dict[str, Path] = {}
        for path in config_lib.names(spec):
            if not Path(path).exists():
                raise UserError(f"data.benchmarks: {path} does not exist")
            for part in Files(path).parts:
                name = functools.reduce(str.removesuffix, reversed(SUFFIXES), part.name)
                if self._files.setdefault(name, part) != part:
                    raise UserError(
                        f"data.benchmarks: {self._files[name]} and {part} have the same name"
                    )

    @property
    def names(self) -> list[str]:
        """The benchmarks."""
        return list(self._files)

    def digest(self) -> str:
        """SHA-256 of the bytes of all files."""
        return digest_of(self._files.values())

    @functools.cached_property
    def index(self) -> Index:
        """What they say."""
        return Index(item for path in self._files.values() for item in _items(path))

    def name(self, item: int) -> str:
        """The benchmark that an item of the index is of."""
        path = Path(self.index.where[item].rpartition(":")[0])
        return next(name for name, file in self._files.items() if file == path)

    def contaminated(self, examples: Iterable[Example]) -> np.ndarray:
        """int64[]: the numbers of the examples that share text with any item."""
        return np.unique(np.asarray([hit.example for hit in self.index.hits(examples)], np.int64))


def _items(path: Path) -> Iterator[Item]:
    for name, number, row in Files(str(path)).rows(()):
        if isinstance(row, UserError):
            raise row
        yield Item(f"{name}:{number}", list(strings(row)))
