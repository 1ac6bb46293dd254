"""Where the examples of every domain come from. Every mistake names its file and line."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ideal_jax.config import choice, nearest
from ideal_jax.config import names as comma_names
from ideal_jax.data.files import SUFFIXES, Files
from ideal_jax.data.hubs import HuggingFace, Tfds
from ideal_jax.data.records import BESIDE, FIELDS, FORMS, Record, Row, record_of
from ideal_jax.data.records import Message as Message
from ideal_jax.errors import UserError


class Source(NamedTuple):
    """One set of examples.

    Attributes:
      spec: a file, a folder of files, ``hf:NAME@SPLIT`` or ``tfds:NAME@SPLIT``.
      form: which of `records.FORMS` it is written in; "" recognises it.
      fields: (our name, theirs) of fields that are called otherwise.
      data_dir: where TensorFlow Datasets look for a name.
      ignore: keys of its rows and turns to do without, though they change the examples.
    """

    spec: str
    form: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    data_dir: str = ""
    ignore: tuple[str, ...] = ()

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms to look for: the one that is given, else those that the fields speak of."""
        if self.form:
            return (self.form,)
        ours = {ours for ours, _ in self.fields} - {*BESIDE}
        return tuple(
            name for name, form in FORMS.items() if not ours or ours & {*form.needs, *form.others}
        )

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the columns to read."""
        ours = tuple(field for field in FIELDS if field not in self.ignore)
        return tuple(dict(self.fields).values()) + ours

    def open(self) -> Files | HuggingFace | Tfds:
        """Its rows and their digest."""
        if self.spec.startswith("hf:"):
            return HuggingFace(self.spec)
        if self.spec.startswith("tfds:"):
            return Tfds(self.spec, self.data_dir)
        return Files(self.spec)

    def renamed(self, row: Any) -> Any:
        """The row with our names for its fields."""
        if not self.fields or not isinstance(row, dict):
            return row
        return {**row, **{ours: row[theirs] for ours, theirs in self.fields if theirs in row}}


class Domain(NamedTuple):
    """The sets of one domain; one that is None is cut from train."""

    train: Source
    reference: Source | None
    test: Source | None


def is_built_in(config: Any) -> bool:
    """Whether the ``data`` section names no data: the built-in capabilities are meant."""
    return not config.root and not config.sources


def find_sources(config: Any) -> dict[str, Domain]:
    """The domains of a ``data`` section: the folders of ``root`` and the entries of ``sources``.

    Those that ``domains`` names in that order, or else all of them by name.

    Raises:
      UserError: unknown, missing or declared in a wrong way.
    """
    names = comma_names(config.domains)
    found = {name: _declared(name, entry) for name, entry in config.sources.items()}
    in_root = tuple(name for name in names if name not in found)
    if config.root and (in_root or not names):
        folders = find_domains(config.root, in_root)
        for name in folders.keys() & found.keys():
            raise UserError(f"data.sources.{name}: {config.root} holds a domain of this name too")
        found |= folders
    _check_names(names, sorted(found), "data.sources")
    return {name: found[name] for name in names or sorted(found)}


def find_domains(root: str | Path, names: Sequence[str] = ()) -> dict[str, Domain]:
    """The domains under ``root``: the named ones in that order, or all of them by name."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data.root {root} does not exist; give a folder with one folder a domain")
    available = sorted(path.name for path in root.iterdir() if _find(path, "train"))
    if not available:
        raise UserError(f"data.root {root} holds no domain; expected {root}/<domain>/train.jsonl")
    _check_names(names, available, str(root))
    return {name: _domain_files(root / name) for name in names or available}


def stop_at(error: UserError) -> None:
    """What becomes of a bad record unless the caller knows better: it ends everything."""
    raise error


def read_domain(
    source: Source | str | Path, refuse: Callable[[UserError], None] = stop_at
) -> Iterator[Record]:
    """The examples of a source, one at a time.

    Fields that can not change an example are ignored.

    Args:
      source: or the path of a file or folder.
      refuse: is given every bad record, as the error that names its file and line.

    Raises:
      UserError: a source that can not be read or holds no examples.
    """
    source = source if isinstance(source, Source) else Source(str(source))
    forms, number = source.forms, 0
    for name, number, row in source.open().rows(source.wanted):
        try:
            if isinstance(row, UserError):
                raise row
            record = record_of(source.renamed(row), name, number, forms, source.ignore)
        except UserError as error:
            refuse(error)
        else:
            yield record
    if not number:
        raise UserError(f"{source.spec} holds no examples")


def _check_names(names: Sequence[str], available: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'data.domains names "{name}" twice')
        if name not in available:
            raise UserError(
                f'data.domains: {where} holds no domain "{name}"{nearest(name, available)}; '
                f"there are {', '.join(available)}"
            )


def _declared(name: str, entry: Any) -> Domain:
    key = f"data.sources.{name}"
    if not name or "/" in name or name.startswith(".") or "," in name:
        raise UserError(f"{key}: a domain's name is a word without / or comma")
    if not hasattr(entry, "items"):
        raise UserError(f'{key}: must be a section, as in {{"train": "folder/train.jsonl", …}}')
    _known(key, dict(entry), (*Domain._fields, "form", "fields", "data_dir", "ignore"))
    fields = entry.get("fields", {})
    if not hasattr(fields, "items"):
        raise UserError(f'{key}.fields: must be a section, as in {{"prompt": "question"}}')
    _known(f"{key}.fields", dict(fields), FIELDS)
    form = entry.get("form", "")
    if form:
        choice(f"{key}.form", form, FORMS)
    if not entry.get("train"):
        raise UserError(f"{key}.train is missing; each domain needs a train set")
    make = functools.partial(
        Source,
        form=form,
        fields=tuple(sorted(fields.items())),
        data_dir=entry.get("data_dir", ""),
        ignore=comma_names(entry.get("ignore", "")),
    )
    held_out = (make(entry[part]) if entry.get(part) else None for part in Domain._fields[1:])
    return Domain(make(entry["train"]), *held_out)


def _known(key: str, given: Row, allowed: Sequence[str]) -> None:
    for name, value in given.items():
        if name not in allowed:
            raise UserError(f"{key}.{name}: unknown key{nearest(name, allowed)}")
        if not isinstance(value, str) and name != "fields":
            raise UserError(f"{key}.{name}: must be a string, found {type(value).__name__}")


def _domain_files(folder: Path) -> Domain:
    train, reference, test = (_find(folder, part) for part in Domain._fields)
    assert train is not None
    return Domain(train, reference, test)


def _find(folder: Path, part: str) -> Source | None:
    found = [path for suffix in SUFFIXES if (path := folder / f"{part}{suffix}").is_file()]
    found += [folder / part] if (folder / part).is_dir() else []
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1].name} both exist; remove one of them")
    return Source(str(found[0])) if found else None
