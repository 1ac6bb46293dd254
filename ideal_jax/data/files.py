"""Rows of JSONL and Parquet files, by number; and what identifies their content."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ideal_jax.errors import UserError

# (the name of the file, the number of the row in it from 1, the row or why there is none)
Rows = Iterator[tuple[str, int, Any]]
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
BATCH = 1024  # rows of a table held at one time


class Files:
    """A JSONL or Parquet file, or a folder of them in the order of their names.

    Raises:
      UserError: there is no such file or folder, or no such file in it.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        if self.path.is_dir():
            self.parts = sorted(p for p in self.path.iterdir() if p.name.endswith(SUFFIXES))
            if not self.parts:
                raise UserError(
                    f"{path} holds no {', '.join(SUFFIXES)} file; a folder that the datasets "
                    f"library saved is written hf:{path}"
                )
        elif self.path.exists():
            self.parts = [self.path]
        else:
            raise UserError(f"{path} does not exist; give a file or a folder of files")

    @property
    def names(self) -> list[str]:
        """What the rows are counted in."""
        return [str(part) for part in self.parts]

    def digest(self) -> str:
        """SHA-256 of the bytes of all files in order."""
        return digest_of(self.parts)

    def rows(self, wanted: Sequence[str]) -> Rows:
        """Every row; of a table only the ``wanted`` columns, if it has any of them."""
        for part in self.parts:
            yield from _parquet(part, wanted) if part.suffix == ".parquet" else _jsonl(part)


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of the bytes of files in order."""
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


def table_rows(name: str, batches: Iterable[Any]) -> Rows:
    """The rows of Arrow tables or record batches that follow each other."""
    import pyarrow

    # What has no equal in Python: text that is no Unicode, a date beyond the year 9999.
    unreadable = (ValueError, OverflowError, pyarrow.ArrowException)
    first = 1
    for batch in batches:
        try:
            yield from ((name, first + i, row) for i, row in enumerate(batch.to_pylist()))
        except unreadable:
            for i in range(batch.num_rows):
                try:
                    row = batch.slice(i, 1).to_pylist()[0]
                except unreadable as error:
                    row = UserError(f"{name}:{first + i}: not readable: {_line(error)}")
                yield name, first + i, row
        first += batch.num_rows


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def _jsonl(path: Path) -> Rows:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    with opener(path, "rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield str(path), number, _parsed(line, f"{path}:{number}")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}:{number + 1}: not readable as gzip: {error}") from error


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return UserError(f"{where}: not valid JSON: {_line(error)}")


def _parquet(path: Path, wanted: Sequence[str]) -> Rows:
    import pyarrow
    import pyarrow.parquet

    name, number = str(path), 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [column for column in file.schema_arrow.names if column in wanted] or None
        for _, number, row in table_rows(name, file.iter_batches(BATCH, columns=columns)):
            yield name, number, row
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{name}:{number + 1}: not readable as Parquet: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
