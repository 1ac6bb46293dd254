"""From raw text to token stores, once per work directory.

Everything lands whole under one folder, in this order, and what is there already is not redone:

    settings.json                       what the folder was prepared from
    synthetic/<domain>/<split>.jsonl    raw examples, if data.root is empty
    records/<domain>/<split>.jsonl      the examples of each set after splitting, with their origin
    tokenizer/                          Hugging Face folder
    tokens/<domain>/<split>/            token stores
    dataset.json                        names, digest and what was left out; written last
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ideal_jax import config as config_lib
from ideal_jax.data import synthetic
from ideal_jax.data.chat import render_all
from ideal_jax.data.sources import Record, find_domains, read_domain
from ideal_jax.data.splits import split
from ideal_jax.data.store import TokenStore
from ideal_jax.data.tokenizers import byte_tokenizer, digest, load_tokenizer, train_bpe
from ideal_jax.errors import UserError
from ideal_jax.landing import landing, one_at_a_time

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Called with what is being done, how many examples are done, and of how many.
Progress = Callable[[str, int, int | None], None]

SPLITS = ("train", "reference", "test")
_CHUNK = 1024  # conversations tokenized at once


def _silent(name: str, done: int, total: int | None) -> None: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The n domains of a run, tokenized.

    Attributes:
      folder: where it lies.
      names: n names, in the order that domain numbers refer to.
      tokenizer: the tokenizer of all stores.
      train, reference, test: a store per name.
      digest: SHA-256 of the tokenizer and all stores.
      left_out: per name, counts of examples dropped or cut: "overlapping" (train prompts that are
        in the reference or test set), "truncated", "unsupervised" (cut before the answer).
    """

    folder: Path
    names: tuple[str, ...]
    tokenizer: "PreTrainedTokenizerFast"
    train: dict[str, TokenStore]
    reference: dict[str, TokenStore]
    test: dict[str, TokenStore]
    digest: str
    left_out: dict[str, dict[str, int]]

    def records(self, name: str, split: str) -> list[Record]:
        """The conversations behind a store, in its order: prompts and reference answers as text."""
        store = getattr(self, split)[name]
        records = _read_records(self.folder, name, split)
        return [records[position] for position in store.kept]


def prepare(
    config: Any,
    folder: str | Path,
    seed: int,
    progress: Progress = _silent,
) -> Dataset:
    """The data of a run; prepared on the first call, continued after a kill, opened afterwards.

    Args:
      config: the ``data`` section (see ``configs/base.py``).
      folder: ``<workdir>/data``. Processes that share it take turns.
      seed: of the built-in capabilities; real data does not depend on it.

    Raises:
      UserError: bad or missing data, or a folder that was prepared with other settings.
    """
    _check(config)
    folder = Path(folder)
    with one_at_a_time(folder):
        _claim(folder, config, seed)
        if not (folder / "dataset.json").exists():
            names = _write_records(config, folder, seed, progress)
            tokenizer = _make_tokenizer(config.tokenizer, folder, names, progress)
            for name in names:
                for part in SPLITS:
                    _write_store(folder, name, part, tokenizer, config.row_length + 1, progress)
            _summarise(folder, names, tokenizer)
    return _open(folder)


def tokenized(
    records: Sequence[Record],
    tokenizer: "PreTrainedTokenizerFast",
    label: str,
    progress: Progress = lambda name, done, total: None,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(id, tokens, mask) of each record, for `TokenStore.write`; progress goes by ``label``."""
    """(id, tokens, mask) of every record."""
    for start in range(0, len(records), _CHUNK):
        progress(label, start, len(records))
        chunk = records[start : start + _CHUNK]
        where = [f"{record.where} (id {record.id})" for record in chunk]
        rendered = render_all(tokenizer, [record.messages for record in chunk], where)
        for record, (tokens, mask) in zip(chunk, rendered, strict=True):
            yield record.id, tokens, mask
    progress(label, len(records), len(records))


def _check(config: Any) -> None:
    least = {"row_length": 1, "max_segments": 1, "window": 1, "test_examples": 0}
    for key, smallest in least.items():
        if getattr(config, key) < smallest:
            raise UserError(f"data.{key}={getattr(config, key)}: must be at least {smallest}")
    if config.root:
        return
    for key in ("reference", "test"):
        if getattr(config.synthetic, key) < 1:
            raise UserError(f"data.synthetic.{key}: must be at least 1")
    if not 0 <= config.synthetic.noise <= 1:
        raise UserError(f"data.synthetic.noise={config.synthetic.noise}: must be in 0..1")


def _claim(folder: Path, config: Any, seed: int) -> None:
    keys = ["root", "domains", "tokenizer", "row_length", "test_examples"]
    settings = {f"data.{key}": getattr(config, key) for key in keys}
    if not config.root:
        parts = ("counts", "noise", "reference", "test")
        settings |= {f"data.synthetic.{key}": getattr(config.synthetic, key) for key in parts}
        settings["seed"] = seed
    path = folder / "settings.json"
    changed = config_lib.changed(json.loads(path.read_text()), settings) if path.exists() else []
    if changed and (folder / "dataset.json").exists():
        raise UserError(
            f"{folder} was prepared with other settings ({'; '.join(changed)}); "
            "use another work directory, or remove this folder"
        )
    if changed:
        # A mistake was mended before the preparation was through: what there is does not fit.
        for part in ("synthetic", "records", "tokenizer", "tokens"):
            shutil.rmtree(folder / part, ignore_errors=True)
    if changed or not path.exists():
        with landing(path) as partial:
            partial.write_text(json.dumps(settings, indent=1))


def _write_records(config: Any, folder: Path, seed: int, progress: Progress) -> tuple[str, ...]:
    names = config_lib.names(config.domains)
    root = Path(config.root) if config.root else folder / "synthetic"
    if not config.root:
        names = names or tuple(synthetic.DOMAINS)
        if not root.exists():
            _write_synthetic(config.synthetic, root, seed)
    found = find_domains(root, names)
    for name, files in found.items():
        target = folder / "records" / name
        if target.exists():
            continue
        progress(f"read {name}", 0, None)
        sets = split(
            list(read_domain(files.train)),
            list(read_domain(files.reference)),
            list(read_domain(files.test)) if files.test else None,
            config.test_examples,
        )
        progress(f"read {name}", len(sets.train), len(sets.train))
        with landing(target) as partial:
            partial.mkdir()
            for part in SPLITS:
                with (partial / f"{part}.jsonl").open("w", encoding="utf-8") as file:
                    for record in getattr(sets, part):
                        file.write(json.dumps(dataclasses.asdict(record)) + "\n")
            (partial / "overlapping.json").write_text(json.dumps(sets.overlapping))
    return tuple(found)


def _write_synthetic(config: Any, root: Path, seed: int) -> None:
    key = "data.synthetic.counts"
    counts = config_lib.numbers(key, config.counts, int, len(synthetic.DOMAINS))
    if counts is None or min(counts) < 1:
        raise UserError(f"{key}={config.counts}: every domain needs at least one example")
    synthetic.write(
        root,
        seed=seed,
        counts=counts,
        noise=config.noise,
        reference=config.reference,
        test=config.test,
    )


def _make_tokenizer(
    spec: str, folder: Path, names: Sequence[str], progress: Progress
) -> "PreTrainedTokenizerFast":
    path = folder / "tokenizer"
    if not path.exists():
        kind, _, size = spec.partition(":")
        if spec == "byte":
            tokenizer = byte_tokenizer()
        elif kind == "bpe" and size.isdecimal():
            progress("train tokenizer", 0, None)
            tokenizer = train_bpe(_train_texts(folder, names), int(size))
        else:
            tokenizer = load_tokenizer(spec)
        with landing(path) as partial:
            tokenizer.save_pretrained(partial)
    # Always the saved one, so that a first and a later start use the same object.
    return load_tokenizer(path)


def _train_texts(folder: Path, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        for record in _read_records(folder, name, "train"):
            yield from (message["content"] for message in record.messages)


def _write_store(
    folder: Path,
    name: str,
    part: str,
    tokenizer: "PreTrainedTokenizerFast",
    max_length: int,
    progress: Progress,
) -> None:
    path = folder / "tokens" / name / part
    if path.exists():
        return
    records = _read_records(folder, name, part)
    store = TokenStore.write(
        path, tokenized(records, tokenizer, f"tokenize {name}/{part}", progress), max_length
    )
    if records and not len(store):
        raise UserError(
            f"{path}: every prompt fills data.row_length={max_length - 1}, so no answer is left; "
            "raise data.row_length"
        )


def _summarise(folder: Path, names: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> None:
    sha = hashlib.sha256(digest(tokenizer).encode())
    left_out = {}
    for name in names:
        overlapping = json.loads((folder / "records" / name / "overlapping.json").read_text())
        counts = {"overlapping": overlapping, "truncated": 0, "unsupervised": 0}
        for part in SPLITS:
            store = TokenStore.open(folder / "tokens" / name / part)
            counts["truncated"] += store.truncated
            counts["unsupervised"] += store.unsupervised
            sha.update(f"{name}/{part}:{store.digest};".encode())
        left_out[name] = counts
    with landing(folder / "dataset.json") as partial:
        summary = {"names": names, "digest": sha.hexdigest(), "left_out": left_out}
        partial.write_text(json.dumps(summary, indent=1))


def _open(folder: Path) -> Dataset:
    summary = json.loads((folder / "dataset.json").read_text())
    names = tuple(summary["names"])
    train, reference, test = (
        {name: TokenStore.open(folder / "tokens" / name / part) for name in names}
        for part in SPLITS
    )
    return Dataset(
        folder=folder,
        names=names,
        tokenizer=load_tokenizer(folder / "tokenizer"),
        train=train,
        reference=reference,
        test=test,
        digest=summary["digest"],
        left_out=summary["left_out"],
    )


def _read_records(folder: Path, name: str, part: str) -> list[Record]:
    lines = (folder / "records" / name / f"{part}.jsonl").read_text(encoding="utf-8").split("\n")
    return [Record(**json.loads(line)) for line in lines[:-1]]
