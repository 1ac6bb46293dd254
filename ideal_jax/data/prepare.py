"""From raw examples to token stores: made once, shared by all runs, opened by each.

What is made of data lies in the cache (`data.cache`), under keys of the content it was made of:

    records/<key>/      train.jsonl [reference.jsonl] [test.jsonl] index.npz summary.json
    tokenizers/<key>/   a tokenizer that was trained on them
    tokens/<key>/       train/ reference/ test/: token stores, in chunks

Here <key> is of the bytes and form of a domain's sources; of its records; of its records, the
tokenizer and what decides tokens and masks. A run keeps under its own folder what binds it to its
data, and can have the cache made again if that was removed:

    settings.json                       what the folder was prepared from
    synthetic/<domain>/<split>.jsonl    the raw examples, if they are the built-in ones
    tokenizer/                          Hugging Face folder
    dataset.json                        names, entries, digest and what was left out; written last

Everything lands whole, in this order, and what is there already is not made again.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ideal_jax import config as config_lib
from ideal_jax import sealed
from ideal_jax.data import synthetic
from ideal_jax.data.benchmarks import Benchmarks
from ideal_jax.data.cache import cache_folder, entry
from ideal_jax.data.collect import (
    SPLITS,
    Collected,
    Records,
    collect,
    is_collected,
    open_collected,
)
from ideal_jax.data.overlap import record_texts
from ideal_jax.data.sources import Domain, find_domains, find_sources, is_built_in
from ideal_jax.data.store import TokenStore
from ideal_jax.data.tokenizers import (
    byte_tokenizer,
    digest,
    files_digest,
    load_tokenizer,
    refuse_other,
    tokens_digest,
    train_bpe,
)
from ideal_jax.data.tokenizing import tokenize, useful_workers
from ideal_jax.data.workers import Crew
from ideal_jax.errors import UserError
from ideal_jax.landing import landing, one_at_a_time

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Called with what is being done, how many examples are done, and of how many.
Progress = Callable[[str, int, int | None], None]


def _silent(name: str, done: int, total: int | None) -> None: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The n domains of a run, tokenized.

    Attributes:
      folder: of the run.
      names: n names, in the order that domain numbers refer to.
      tokenizer: the tokenizer of all stores.
      train, reference, test: a store per name.
      digest: SHA-256 of the tokenizer and all stores.
      cut: per name and set that was not given: "held_out" of the "eligible" train examples,
        "wanted".
      left_out: per name, counts of examples left out or cut: "overlapping" (train prompts that
        are in the reference or test set), "contaminated" (of train, by a benchmark), "truncated",
        "dropped" (too long), "unsupervised" (cut before the answer).
      collected: per name, the examples behind the stores.
    """

    folder: Path
    names: tuple[str, ...]
    tokenizer: "PreTrainedTokenizerFast"
    train: dict[str, TokenStore]
    reference: dict[str, TokenStore]
    test: dict[str, TokenStore]
    digest: str
    left_out: dict[str, dict[str, int]]
    cut: dict[str, dict[str, dict[str, int]]]
    collected: dict[str, Collected]

    def records(self, name: str, split: str) -> Records:
        """The examples behind a store, in its order, read from disk when asked for.

        Of a text that was cut into pieces every piece is an example of the store.
        """
        records: Records = getattr(self.collected[name], split)
        return records[getattr(self, split)[name].kept]


def prepare(
    config: Any,
    folder: str | Path,
    seed: int,
    progress: Progress = _silent,
    own: Path | None = None,
) -> Dataset:
    """The data of a run; prepared on the first call, continued after a kill, opened afterwards.

    Args:
      config: the ``data`` section (see ``configs/base.py``).
      folder: ``<workdir>/data``. Processes that share it take turns.
      seed: of the built-in capabilities; real data does not depend on it.
      own: the tokenizer of the model; the one that ``config`` names must have its tokens.

    Raises:
      UserError: bad or missing data, another tokenizer than the model's, or a folder that was
        prepared with other settings.
    """
    _check(config)
    folder, cache = Path(folder), cache_folder(config.cache)
    with one_at_a_time(folder):
        settled = _claim(folder, config, seed)
        path = folder / "dataset.json"
        summary = sealed.whole(path)
        if summary is None or not (settled and _is_whole(folder, cache, summary)):
            if summary is not None:
                # The raw examples are made quickly, and whether they are whole is not known.
                shutil.rmtree(folder / "synthetic", ignore_errors=True)
            made = _make(config, folder, cache, seed, progress, own)
            if summary is None:
                sealed.write(path, made)
            elif made["digest"] != summary["digest"]:
                raise UserError(
                    f"{folder}: the cache {cache} no longer has this run's data, and its sources "
                    "have changed since; restore them, or use another work directory"
                )
            elif made != summary:
                sealed.write(path, made)
            summary = made
    return _open(folder, cache, summary)


def _check(config: Any) -> None:
    config_lib.check(config, "data.")
    if config.decontaminate and not config.benchmarks:
        raise UserError("data.decontaminate needs data.benchmarks: files of what to leave out")


def _claim(folder: Path, config: Any, seed: int) -> bool:
    """Binds the folder to the settings; whether what is in it is known to be of them."""
    keys = ["root", "domains", "tokenizer", "supervise", "row_length", "overlong"]
    keys += [f"{part}_examples" for part in SPLITS[1:]]
    settings = {f"data.{key}": getattr(config, key) for key in keys}
    if Path(config.tokenizer).is_dir():  # its content: the folder may move
        settings["data.tokenizer"] = f"sha256:{files_digest(Path(config.tokenizer))}"
    settings["data.decontaminate"] = config.benchmarks if config.decontaminate else False
    settings |= dict(config_lib.flatten(config.sources, "data.sources."))
    if is_built_in(config):
        parts = ("counts", "noise", "reference", "test")
        settings |= {f"data.synthetic.{key}": getattr(config.synthetic, key) for key in parts}
        settings["seed"] = seed
    path = folder / "settings.json"
    lost = path.exists()
    known = sealed.whole(path, "the data is prepared again")
    lost = lost and known is None
    changed = [] if known is None else config_lib.changed(known, settings)
    if changed and (folder / "dataset.json").exists():
        raise UserError(
            f"{folder} was prepared with other settings ({'; '.join(changed)}); "
            "use another work directory, or remove this folder"
        )
    if changed or lost:
        # A mistake was mended before the preparation was through: what there is does not fit.
        for part in ("synthetic", "tokenizer"):
            shutil.rmtree(folder / part, ignore_errors=True)
    if changed or known is None:
        sealed.write(path, settings)
    return not lost


def _make(
    config: Any, folder: Path, cache: Path, seed: int, progress: Progress, own: Path | None
) -> dict[str, Any]:
    """Whatever is missing; what goes into ``dataset.json``."""
    with Crew(config.workers) as crew:
        return _make_with(crew, config, folder, cache, seed, progress, own)


def _make_with(
    crew: Crew,
    config: Any,
    folder: Path,
    cache: Path,
    seed: int,
    progress: Progress,
    own: Path | None,
) -> dict[str, Any]:
    collected: dict[str, Collected] = {}
    benchmarks = Benchmarks(config.benchmarks) if config.decontaminate else None
    wanted = {part: config[f"{part}_examples"] for part in SPLITS[1:]}
    for name, domain in _domains(config, folder, seed).items():

        def told(done: int, label: str = f"read {name}") -> None:
            progress(label, done, None)
            crew.start(useful_workers(done))  # they get ready while the rest is read

        told(0)
        collected[name] = collect(domain, wanted, benchmarks, cache, told)
    tokenizer = _make_tokenizer(config.tokenizer, folder, cache, collected, progress, own)
    decides = [digest(tokenizer), config.supervise, config.row_length, config.overlong]
    entries = {
        name: entry(cache, "tokens", [sets.path.name, *decides]) for name, sets in collected.items()
    }
    tokenize(
        {entries[name]: sets for name, sets in collected.items()},
        folder / "tokenizer",
        config.supervise,
        config.row_length + 1,
        config.overlong,
        crew,
        lambda done, total: progress("tokenize", done, total),
    )
    _check_answers(config, entries, collected)
    return {
        "names": list(entries),
        **_summary(entries, collected, tokenizer),
        "cut": {
            name: {
                part: {"held_out": count, "eligible": sets.eligible, "wanted": wanted[part]}
                for part, count in sets.cut.items()
            }
            for name, sets in collected.items()
        },
        "tokenizer": _files(folder),
        "records": {name: sets.path.name for name, sets in collected.items()},
        "tokens": {name: path.name for name, path in entries.items()},
    }


def _domains(config: Any, folder: Path, seed: int) -> dict[str, Domain]:
    if not is_built_in(config):
        return find_sources(config)
    root = folder / "synthetic"
    if not root.exists():
        _write_synthetic(config.synthetic, root, seed)
    return find_domains(root, config_lib.names(config.domains) or tuple(synthetic.DOMAINS))


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
    spec: str,
    folder: Path,
    cache: Path,
    collected: Mapping[str, Collected],
    progress: Progress,
    own: Path | None,
) -> "PreTrainedTokenizerFast":
    path = folder / "tokenizer"
    if not path.exists():
        kind, _, size = spec.partition(":")
        if kind == "bpe" and size.isdecimal():
            progress("train tokenizer", 0, None)
            tokenizer = load_tokenizer(_trained(int(size), cache, collected))
        else:
            tokenizer = byte_tokenizer() if spec == "byte" else load_tokenizer(spec)
        if own is not None and Path(spec) != own:
            refuse_other(tokenizer, spec, own)
        with landing(path) as partial:
            tokenizer.save_pretrained(partial)
            # A library that saves less than it has read would change ids without a word.
            if tokens_digest(load_tokenizer(partial)) != tokens_digest(tokenizer):
                raise UserError(
                    f"tokenizer {spec} is another one when transformers has saved it; give a folder"
                    " that PreTrainedTokenizerFast.save_pretrained wrote"
                )
    # Always the saved one, so that a first and a later start use the same object.
    return load_tokenizer(path)


def _trained(size: int, cache: Path, collected: Mapping[str, Collected]) -> Path:
    path = entry(cache, "tokenizers", [size, *(sets.path.name for sets in collected.values())])
    with one_at_a_time(path):
        if not sealed.is_finished(path):
            tokenizer = train_bpe(_train_texts(collected.values()), size)
            shutil.rmtree(path / "tokenizer", ignore_errors=True)
            with landing(path / "tokenizer") as partial:
                tokenizer.save_pretrained(partial)
            sealed.finish(path, _files(path))
    return path / "tokenizer"


def _files(folder: Path) -> dict[str, str]:
    """The digests of the files of the tokenizer in ``folder``."""
    names = sorted((folder / "tokenizer").iterdir())
    return sealed.digests(folder, [str(path.relative_to(folder)) for path in names])


def _train_texts(collected: Iterable[Collected]) -> Iterator[str]:
    for sets in collected:
        for record in sets.train:
            yield from record_texts(record)


def _check_answers(
    config: Any, entries: Mapping[str, Path], collected: Mapping[str, Collected]
) -> None:
    for name, path in entries.items():
        for part in SPLITS:
            if len(getattr(collected[name], part)) and not len(TokenStore.open(path / part)):
                raise UserError(
                    f"{name}/{part}: no example has a supervised token within "
                    f"data.row_length={config.row_length}; raise data.row_length"
                )


def _summary(
    entries: Mapping[str, Path],
    collected: Mapping[str, Collected],
    tokenizer: "PreTrainedTokenizerFast",
) -> dict[str, Any]:
    sha = hashlib.sha256(digest(tokenizer).encode())
    left_out = {}
    for name, path in entries.items():
        counts = {"truncated": 0, "dropped": 0, "unsupervised": 0}
        for part in SPLITS:
            store = TokenStore.open(path / part)
            counts = {key: count + getattr(store, key) for key, count in counts.items()}
            sha.update(f"{name}/{part}:{store.digest};".encode())
        sets = collected[name]
        dropped = {"overlapping": sets.overlapping, "contaminated": sets.contaminated}
        left_out[name] = {**dropped, **counts}
    return {"digest": sha.hexdigest(), "left_out": left_out}


def _is_whole(folder: Path, cache: Path, summary: Mapping[str, Any]) -> bool:
    """Whether everything that a folder was prepared from is there, in it and in the cache.

    A damaged tokenizer is removed, which is said.
    """
    tokenizer_is_whole = sealed.are_whole(folder, summary["tokenizer"])
    if not tokenizer_is_whole:
        sealed.tell(f"{folder / 'tokenizer'} is damaged: it is made again")
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    tokens = [
        cache / "tokens" / key / part for key in summary["tokens"].values() for part in SPLITS
    ]
    records = [cache / "records" / key for key in summary["records"].values()]
    # A list, as all that are damaged are to be said.
    return all([tokenizer_is_whole, *map(TokenStore.is_whole, tokens), *map(is_collected, records)])


def _open(folder: Path, cache: Path, summary: Mapping[str, Any]) -> Dataset:
    names = tuple(summary["names"])
    train, reference, test = (
        {name: TokenStore.open(cache / "tokens" / summary["tokens"][name] / part) for name in names}
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
        cut=summary["cut"],
        collected={
            name: open_collected(cache / "records" / key)
            for name, key in summary["records"].items()
        },
    )
