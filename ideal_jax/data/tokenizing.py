"""Examples as tokens, chunk by chunk, in as many processes as wanted."""

import contextlib
import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ideal_jax.data.chat import Supervise, render_all
from ideal_jax.data.collect import SPLITS, Collected, Records
from ideal_jax.data.records import Record
from ideal_jax.data.store import Example, Overlong, TokenStore
from ideal_jax.data.tokenizers import load_tokenizer
from ideal_jax.data.workers import Crew
from ideal_jax.errors import UserError
from ideal_jax.landing import one_at_a_time

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHUNK = 4096  # examples that land together
_BATCH = 512  # of them, tokenized at once
_SCRATCH = ".scratch-"


class _Chunk(NamedTuple):
    """Records numbered from ``first``, to be written as a store at ``path``."""

    store: Path
    path: Path
    records: Records
    first: int
    tokenizer: Path
    supervise: Supervise
    longest: int
    overlong: Overlong


def tokenize(
    domains: Mapping[Path, Collected],
    tokenizer: Path,
    supervise: Supervise,
    longest: int,
    overlong: Overlong,
    crew: Crew,
    progress: Callable[[int, int], None],
) -> None:
    """Write the stores ``<entry>/<split>`` of every domain, but for those that are there.

    Every chunk lands whole, so a process that is killed loses those it was at. The stores do not
    depend on the number of workers. Processes take turns at an entry.

    Args:
      domains: by their entry in the cache.
      tokenizer: its folder.
      supervise: "all" assistant turns, or the "last" one only.
      longest: tokens of an example.
      overlong: what becomes of a longer conversation. Texts are cut into pieces.
      crew: does it, and gets as many processes as there is work for.
      progress: is told how many examples are done, of how many.

    Raises:
      UserError: an example that can not be tokenized; names its file and line.
    """
    with contextlib.ExitStack() as locks:
        # In one order, or two processes might wait for each other.
        for path in sorted(domains):
            locks.enter_context(one_at_a_time(path))
        stores = {
            path / part: getattr(collected, part)
            for path, collected in domains.items()
            for part in SPLITS
            if not TokenStore.is_whole(path / part)
        }
        done, total = 0, sum(len(records) for records in stores.values())
        progress(done, total)
        scratch = locks.enter_context(_scratch(domains))
        chunks = []
        for store, records in stores.items():
            store.mkdir(exist_ok=True)
            for name, first in _starts(records).items():
                part = records[first : first + _CHUNK]
                if TokenStore.is_whole(store / name):
                    done += len(part)
                else:
                    path = scratch[store.parent] / f"{store.name}-{name}"
                    how = tokenizer, supervise, longest, overlong
                    chunks.append(_Chunk(store, path, part, first, *how))
        crew.start(useful_workers(total - done))
        for chunk, _ in crew.run(_write, chunks):
            target = chunk.store / f"{chunk.first // _CHUNK:05d}"
            shutil.rmtree(target, ignore_errors=True)
            os.replace(chunk.path, target)
            done += len(chunk.records)
            progress(done, total)
        for store, records in stores.items():
            TokenStore.join(store, _starts(records))


def tokenized(
    records: Iterable[Record],
    tokenizer: "PreTrainedTokenizerFast",
    supervise: Supervise = "all",
    overlong: Overlong = "truncate",
    first: int = 0,
) -> Iterator[Example]:
    """The records as tokens, numbered from ``first``, for `TokenStore.write`."""
    numbered = enumerate(records, start=first)
    while batch := list(itertools.islice(numbered, _BATCH)):
        talks = [record for _, record in batch if record.text is None]
        texts = [record.text for _, record in batch if record.text is not None]
        where = [f"{record.where} (id {record.id})" for record in talks]
        messages = [talk.messages for talk in talks]
        tools = [talk.tools for talk in talks]
        rendered = iter(render_all(tokenizer, messages, where, supervise, tools))
        plain = _plain(tokenizer, texts)
        for number, record in batch:
            if record.text is None:
                yield Example(number, record.id, *next(rendered), overlong)
            else:
                tokens = next(plain)
                yield Example(number, record.id, tokens, np.ones(len(tokens), bool), "pieces")


def _plain(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Texts as the base model saw them: no template, but where one begins and ends."""
    if not texts:
        return
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no eos_token, which ends a text; "
            "add it to its tokenizer_config.json"
        )
    begin = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]
    # Text that spells a special token stays text.
    options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True}
    for ids in tokenizer(list(texts), **options)["input_ids"]:
        yield np.asarray([*begin, *ids, tokenizer.eos_token_id], np.int32)


def _write(chunk: _Chunk) -> None:
    tokenizer, how = _loaded(chunk.tokenizer), (chunk.supervise, chunk.overlong, chunk.first)
    examples = tokenized(chunk.records, tokenizer, *how)
    TokenStore.write(chunk.path, examples, chunk.longest)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path) -> "PreTrainedTokenizerFast":
    return load_tokenizer(folder)


def _starts(records: Sequence[Record]) -> dict[str, int]:
    """The number of the first record of every chunk, by the chunk's name."""
    return {f"{i // _CHUNK:05d}": i for i in range(0, len(records), _CHUNK)}


def useful_workers(examples: int) -> int:
    """A process takes seconds to start: it is worth while for two full chunks at least."""
    chunks = examples // _CHUNK
    return chunks if chunks > 1 else 0


@contextlib.contextmanager
def _scratch(entries: Iterable[Path]) -> Iterator[dict[Path, Path]]:
    """A folder in each entry that is gone afterwards.

    The worker of a caller that was killed may still write to the one it had.
    """
    made = {}
    try:
        for entry in entries:
            for old in entry.glob(f"{_SCRATCH}*"):
                shutil.rmtree(old, ignore_errors=True)
            made[entry] = Path(tempfile.mkdtemp(dir=entry, prefix=_SCRATCH))
        yield made
    finally:
        for folder in made.values():
            shutil.rmtree(folder, ignore_errors=True)
