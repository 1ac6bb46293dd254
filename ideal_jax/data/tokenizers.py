"""Tokenizers: byte-level, trained BPE, or any local Hugging Face folder. All are "fast" ones."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from ideal_jax.errors import UserError

# `import transformers` takes seconds, so the functions that need it import it. It need not advise
# to install PyTorch: only its tokenizers are used.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
SPECIALS = (PAD, "<|system|>", "<|user|>", "<|assistant|>", END)

# Compact: a role token, the content, nothing else. Only assistant turns are closed, because only
# they have to be stopped. The {% generation %} block is what the loss sees.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}
{%- else -%}
{{ message['content'] }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """One token for each of the 256 bytes, after the 5 specials (ids 0..4)."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *alphabet))}
    return _wrap(tokenizers.models.BPE(vocab=vocabulary, merges=[]))


def train_bpe(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Byte-level BPE with at most ``vocab_size`` tokens: 5 specials, 256 bytes, then merges.

    The same texts in the same order give the same tokenizer.
    """
    smallest = len(SPECIALS) + 256
    if vocab_size < smallest:
        raise UserError(f"a BPE vocabulary of {vocab_size} is too small; use at least {smallest}")
    model = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return _wrap(model.model)


# What a tokenizer can be read from, and what else decides what it does.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json", "merges.txt")
_SETTINGS = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
# Parts of a tokenizer.json that decide neither ids nor which text becomes which.
_AROUND = ("version", "truncation", "padding", "post_processor", "decoder")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds what a tokenizer can be read from; settings alone do not count."""
    return any((folder / name).is_file() for name in _VOCABULARIES)


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a local Hugging Face folder, as transformers reads it.

    A ``tokenizer.json`` whose class nobody names is taken as it stands: the class that transformers
    guesses from ``config.json`` may bring rules of its own. Which of its tokens begin, end and pad
    a text is then read from ``special_tokens_map.json``, or from the ids in ``config.json``.

    Raises:
      UserError: no folder, or no tokenizer in it that can be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f'tokenizer "{path}" does not exist; give "byte", "bpe:<size>" or a local folder'
        )
    if not has_tokenizer(folder):
        raise UserError(
            f'"{path}" holds no readable tokenizer: none of {", ".join(_VOCABULARIES)} is there'
        )
    whole = (folder / "tokenizer.json").is_file()
    if (folder / "tokenizer.model").is_file() and not whole and not find_spec("sentencepiece"):
        raise UserError(
            f'"{path}" has a tokenizer.model and no tokenizer.json: pip install sentencepiece'
        )
    plain = whole and not _json(folder / "tokenizer_config.json").get("tokenizer_class")
    kind: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
    try:
        tokenizer: Any = kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a broken file or a missing package: the library raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'"{path}" holds no readable tokenizer: {reason}') from error
    if not tokenizer.is_fast:
        raise UserError(f'tokenizer "{path}" has no tokenizer.json; convert it to a fast tokenizer')
    if plain:
        _name_specials(tokenizer, folder)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _json(folder / "chat_template.json").get("chat_template")
    return tokenizer


def digest(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 of everything that decides token ids: vocabulary, rules, template, special tokens."""
    text = tokenizer.backend_tokenizer.to_str() + repr(tokenizer.chat_template)
    text += json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tokens_digest(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 of which text becomes which ids: vocabulary, merges, added tokens, how text is split.

    Two tokenizers with the same one mean the same by every id. They may differ in what is put
    around a text: chat template, which token begins, ends or pads one.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    text = json.dumps({k: v for k, v in parts.items() if k not in _AROUND}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_other(tokenizer: "PreTrainedTokenizerFast", named: str, own: Path) -> None:
    """Refuses a tokenizer that is not that of the model.

    Args:
      tokenizer: what was asked for.
      named: how, for the message.
      own: the folder of the model's tokenizer.

    Raises:
      UserError: the same text would become other ids; says where they part.
    """
    known = load_tokenizer(own)
    if tokens_digest(known) == tokens_digest(tokenizer):
        return
    ours, theirs = known.get_vocab(), tokenizer.get_vocab()
    if len(ours) != len(theirs):
        why = f"{len(theirs)} tokens instead of {len(ours)}"
    elif ours != theirs:
        token = min(ours.items() - theirs.items(), key=lambda item: item[1])
        why = f"id {token[1]} is not {token[0]!r}"
    else:
        why = "it splits text by other rules"
    raise UserError(
        f"data.tokenizer={named} is not the tokenizer of the model, which is {own} ({why}): leave "
        "data.tokenizer=auto"
    )


def files_digest(folder: Path) -> str:
    """SHA-256 of the files of a tokenizer, by name: equal wherever the folder lies."""
    sha = hashlib.sha256()
    names = itertools.chain(_VOCABULARIES, _SETTINGS, _TEMPLATES)
    for file in sorted(file for name in names for file in folder.glob(name)):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        sha.update(f"{file.relative_to(folder)}:{content};".encode())
    return sha.hexdigest()


def _name_specials(tokenizer: Any, folder: Path) -> None:
    """Roles of special tokens that only ``config.json`` names, by id."""
    ids = _json(folder / "config.json")
    added = tokenizer.added_tokens_decoder
    for role in ("bos_token", "eos_token", "pad_token"):
        found = ids.get(f"{role}_id")
        found = found[0] if isinstance(found, list) and found else found
        # A config that was never adapted to its tokenizer names ordinary tokens.
        if getattr(tokenizer, role) is None and isinstance(found, int) and found in added:
            setattr(tokenizer, role, added[found].content)


def _json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; {} if there is none, or none that can be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _wrap(model: tokenizers.models.Model) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(model),
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[s for s in SPECIALS if s not in (PAD, END)],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte_level(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer
