"""Rows of data sets of the Hugging Face `datasets` library and of TensorFlow Datasets."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ideal_jax.data.files import BATCH, Rows, digest_of, table_rows
from ideal_jax.errors import UserError


class HuggingFace:
    """``hf:NAME[:CONFIG][@SPLIT]`` on the Hub, or ``hf:FOLDER[@SPLIT]`` that `save_to_disk` wrote.

    A set of one part needs no @SPLIT.

    Raises:
      UserError: it can not be reached or read, or there is no such part.
    """

    def __init__(self, spec: str):
        self.names = [spec]
        name, _, split = spec.removeprefix("hf:").partition("@")
        with _refused(spec), _quiet():
            self._rows = _load(name, split)
        if hasattr(self._rows, "keys") and len(self._rows) == 1:
            (self._rows,) = self._rows.values()
        if hasattr(self._rows, "keys"):
            raise UserError(f"{spec}: add one of @{', @'.join(self._rows)}")

    def digest(self) -> str:
        """SHA-256 of the Arrow files behind the set."""
        return digest_of(Path(file["filename"]) for file in self._rows.cache_files)

    def rows(self, wanted: Sequence[str]) -> Rows:
        """Every row; only the ``wanted`` columns, if there are any of them."""
        table = self._rows
        columns = [column for column in table.column_names if column in wanted]
        table = table.select_columns(columns) if columns else table
        return table_rows(self.names[0], table.with_format("arrow").iter(BATCH))


class Tfds:
    """``tfds:NAME[/CONFIG][:VERSION][@SPLIT]`` under ``data_dir``, or ``tfds:FOLDER[@SPLIT]``.

    A set of one part needs no @SPLIT. It has to lie on disk as ArrayRecord; TensorFlow is not
    needed.

    Raises:
      UserError: there is no such set or part, or in another file format.
    """

    def __init__(self, spec: str, data_dir: str):
        import tensorflow_datasets as tfds

        self.names = [spec]
        name, _, split = spec.removeprefix("tfds:").partition("@")
        with _refused(spec):
            if Path(name).is_dir():
                builder = tfds.builder_from_directory(name)
            else:
                builder = tfds.builder(name, data_dir=data_dir or None)
            parts = list(builder.info.splits)
            split = split or (parts[0] if len(parts) == 1 else "")
            if not split:
                raise UserError(f"{spec}: add one of @{', @'.join(parts)}")
            self._files = [Path(file) for file in builder.info.splits[split].filepaths]
            self._rows = builder.as_data_source(split=split)

    def digest(self) -> str:
        """SHA-256 of the files of the part."""
        return digest_of(self._files)

    def rows(self, wanted: Sequence[str]) -> Rows:
        """Every row."""
        for i in range(len(self._rows)):
            with _refused(f"{self.names[0]}:{i + 1}"):
                row = self._rows[i]
            try:
                row = {key: _plain(value) for key, value in row.items() if key in wanted} or row
            except UnicodeDecodeError as error:
                row = UserError(f"{self.names[0]}:{i + 1}: not valid Unicode: {error.reason}")
            yield self.names[0], i + 1, row


def _load(name: str, split: str) -> Any:
    import datasets

    if not {"state.json", "dataset_dict.json"} & _names(Path(name)):
        path, _, config = name.partition(":")
        return datasets.load_dataset(path, config or None, split=split or None)
    saved = datasets.load_from_disk(name)
    if not split:
        return saved
    if not isinstance(saved, dict):
        raise UserError(f"hf:{name}@{split}: the folder holds one set; leave out @{split}")
    return saved.get(split, saved)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@contextlib.contextmanager
def _refused(spec: str) -> Iterator[None]:
    """Whatever a library raises about a data set, in one line that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip("\"'").splitlines() or [type(error).__name__]
        raise UserError(f"{spec}: {lines[0]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No line for every attempt to reach a Hub that can not be reached."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _plain(value: Any) -> Any:
    """NumPy's bytes and arrays as text and lists."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
