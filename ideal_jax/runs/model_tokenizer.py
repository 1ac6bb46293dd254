"""The tokenizer of a run is that of its model.

A model knows ids; what they mean is its tokenizer's. So every checkpoint carries its tokenizer, a
model of Hugging Face brings its own, and ``data.tokenizer="auto"`` always means that one. A random
model has what ``base.tokenizer`` names.
"""

import pathlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ideal_jax.data.tokenizers import (
    SPECIALS,
    byte_tokenizer,
    digest,
    has_tokenizer,
    load_tokenizer,
    refuse_other,
)
from ideal_jax.errors import UserError
from ideal_jax.models import hf_folder, hf_model
from ideal_jax.runs.base_model import RANDOM, folder_of, is_ours
from ideal_jax.training.checkpoints import saved_model, saved_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Choice(NamedTuple):
    """What the data is to be read with."""

    spec: str  # "byte", "bpe:<size>" or a folder
    own: pathlib.Path | None  # the model's: what ``spec`` names must have its tokens
    told: str  # a line for the terminal; "": there is nothing to tell


def choose_tokenizer(config: Any) -> Choice:
    """The tokenizer that ``data.tokenizer`` means for the model in ``model.init``.

    An explicit one may put other things around a text (chat template, end of text), and that is
    told; its tokens must be the model's.

    Raises:
      UserError: it is not the model's, or nobody says which is.
    """
    asked, init = config.data.tokenizer, config.model.init
    if init == RANDOM:
        return Choice(config.base.tokenizer if asked == "auto" else asked, None, "")
    own = own_tokenizer(init)
    if own is None and asked == "auto":
        kind = "it was trained with" if is_ours(init) else "of the model's tokenizer"
        raise UserError(f"model.init={init} has no tokenizer; give data.tokenizer=<folder {kind}>")
    if own is None:
        check_vocabulary(config, None if _is_trained(asked) else _load(asked))
        told = f"tokenizer: {asked}; model.init={init} has none, so nothing can check that it fits"
        return Choice(asked, None, told)
    if asked == "auto" or pathlib.Path(asked).absolute() == own.absolute():
        return Choice(str(own.absolute()), own.absolute(), "")
    if _is_trained(asked):
        _refuse_trained(asked, own)
        return Choice(asked, own.absolute(), "")
    tokenizer = _load(asked)
    refuse_other(tokenizer, asked, own)
    told = f"tokenizer: {asked}: the tokens of {own}, another chat template or other special tokens"
    return Choice(
        asked, own.absolute(), "" if digest(tokenizer) == digest(load_tokenizer(own)) else told
    )


def own_tokenizer(init: str) -> pathlib.Path | None:
    """The folder of the tokenizer of a model that is not random; None: it has none.

    A round that an older version saved takes the one that its run's data was read with.
    """
    if not is_ours(init):
        folder = hf_folder(init)
        return folder if has_tokenizer(folder) else None
    folder = folder_of(init)
    if found := saved_tokenizer(folder):
        return found
    run = folder.absolute().parent
    run = run.parent if run.name == "rounds" else run
    return run / "data" / "tokenizer" if has_tokenizer(run / "data" / "tokenizer") else None


def check_vocabulary(config: Any, tokenizer: "PreTrainedTokenizerFast | None") -> None:
    """Whether a model that is not random knows every id that the tokenizer gives a text.

    Tokens that only a chat template could write, and this one does not (some checkpoints add such
    for their siblings with images), need not be known.

    Raises:
      UserError: it does not.
    """
    init = config.model.init
    if tokenizer is None or init == RANDOM:
        return
    known = (
        saved_model(folder_of(init))[0] if is_ours(init) else hf_model(hf_folder(init), "float32")
    ).cfg.vocab_size
    more = {token for token, number in tokenizer.get_vocab().items() if number >= known}
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    written = repr(tokenizer.chat_template) + repr(tokenizer.special_tokens_map)
    if more - added or any(token in written for token in more):
        raise UserError(
            f"model.init={init} knows {known} tokens, the tokenizer {len(tokenizer)}; give its own "
            "with data.tokenizer"
        )


def _is_trained(spec: str) -> bool:
    return re.fullmatch(r"bpe:\d+", spec) is not None


def _load(spec: str) -> "PreTrainedTokenizerFast":
    return byte_tokenizer() if spec == "byte" else load_tokenizer(spec)


def _refuse_trained(spec: str, own: pathlib.Path) -> None:
    """Refuses a tokenizer still to be trained that can not become the model's."""
    tokenizer = load_tokenizer(own)
    first = tokenizer.convert_ids_to_tokens(list(range(min(len(SPECIALS), len(tokenizer)))))
    if tuple(first) != SPECIALS or len(tokenizer) > int(spec.removeprefix("bpe:")):
        raise UserError(
            f"data.tokenizer={spec} would train another tokenizer than the model's, which is {own}:"
            " leave data.tokenizer=auto"
        )
