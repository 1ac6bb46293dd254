"""Tokenizers: byte-level, trained BPE, or any local Hugging Face folder. All are "fast" ones."""

import hashlib
import json
import os
from collections.abc import Iterable
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


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a local Hugging Face folder."""
    from transformers import AutoTokenizer

    if not Path(path).is_dir():
        raise UserError(
            f'tokenizer "{path}" does not exist; give "byte", "bpe:<size>" or a local folder'
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # what the library makes of a damaged file may be anything
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f'"{path}" holds no readable tokenizer: {told}') from error
    if not tokenizer.is_fast:
        raise UserError(f'tokenizer "{path}" has no tokenizer.json; convert it to a fast tokenizer')
    return tokenizer


def digest(tokenizer: "PreTrainedTokenizerFast") -> str:
    """SHA-256 of everything that decides token ids: vocabulary, rules, template, special tokens."""
    text = tokenizer.backend_tokenizer.to_str() + repr(tokenizer.chat_template)
    text += json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


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
