"""Every bad record of every file, before anything is made of them."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ideal_jax.data.records import Record
from ideal_jax.data.sources import Source, find_sources, read_domain
from ideal_jax.data.templates import TokenizerError
from ideal_jax.data.tokenizers import load_tokenizer
from ideal_jax.data.tokenizing import tokenized
from ideal_jax.errors import UserError
from ideal_jax.runs.progress import Advance, Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LISTED = 20  # bad records of one source that are printed
_BATCH = 512


def validate(section: Any, reporter: Reporter) -> None:
    """Reads all sources of the ``data`` section and prints every record that is no example.

    So is one that the chat template refuses, if the tokenizer brings its own.

    Raises:
      UserError: there are any; or a source can not be read, or the tokenizer not be used, at all.
    """
    own = section.tokenizer == "byte" or section.tokenizer.startswith("bpe:")
    tokenizer = None if own else load_tokenizer(section.tokenizer)
    bad: dict[str, int] = {}
    for name, domain in find_sources(section).items():
        for part, source in domain._asdict().items():
            if source is None:
                continue
            with reporter.phase(f"read {name}/{part}") as advance:
                errors = _errors(source, tokenizer, section.supervise, advance)
                listed = list(itertools.islice(errors, LISTED))
                more = sum(1 for _ in errors)
            for error in listed:
                reporter.say(str(error))
            if more:
                reporter.say(f"… and {more} more in {source.spec}")
            if listed:
                bad[source.spec] = len(listed) + more
    if bad:
        counts = ", ".join(f"{count} in {spec}" for spec, count in bad.items())
        raise UserError(f"bad records: {counts}; they are listed above: mend or remove them")


def _errors(
    source: Source,
    tokenizer: "PreTrainedTokenizerFast | None",
    supervise: Any,
    advance: Advance,
) -> Iterator[UserError]:
    """What is wrong with each bad record of a source, in order but for batches."""
    refused: list[UserError] = []
    records = read_domain(source, refused.append)
    done = 0
    while batch := list(itertools.islice(records, _BATCH)):
        done += len(batch)
        advance(done)
        yield from refused
        refused.clear()
        if tokenizer is not None and _refusal(batch, tokenizer, supervise):
            refusals = (_refusal([record], tokenizer, supervise) for record in batch)
            yield from (error for error in refusals if error)
    yield from refused


def _refusal(
    records: list[Record], tokenizer: "PreTrainedTokenizerFast", supervise: Any
) -> UserError | None:
    try:
        for _ in tokenized(records, tokenizer, supervise):
            pass
    except TokenizerError:
        raise
    except UserError as error:
        return error
    return None
