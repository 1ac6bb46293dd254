"""Decoders as Hugging Face folders, written by all hosts together, one tensor at a time."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ideal_jax import processes, sharding
from ideal_jax.errors import UserError
from ideal_jax.landing import landing
from ideal_jax.models import families
from ideal_jax.models.config import DecoderConfig
from ideal_jax.models.decoder import Decoder
from ideal_jax.models.huggingface import (
    family_of,
    has_vocab,
    hf_config,
    is_stacked,
    stored_shape,
    tensor_names,
)
from ideal_jax.models.parameters import by_path
from ideal_jax.models.safetensors_files import write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHARD_BYTES = 5 * 10**9  # tensors in one file; a writing host holds one file at a time


def save_hf(
    path: str | Path,
    model: Decoder,
    params: Any,
    tokenizer: "PreTrainedTokenizerFast | None" = None,
    *,
    end_id: int | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes a folder that ``transformers.AutoModelForCausalLM.from_pretrained`` loads.

    All processes call it together. Tensors are gathered one at a time and the files shared out, so
    no host holds more than one of them.

    Args:
      path: the folder, on a file system that all processes share; must not exist.
      model: one that ``load_hf`` gave, or any decoder of Llama's shape.
      params: its parameters, without adapters; stored in their own dtype.
      tokenizer: saved beside, with its chat template.
      end_id: the token that training taught the model to end with; ``generate`` then stops at it.
      shard_bytes: tensors in one file.

    Raises:
      UserError: there is something at ``path``.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; choose another folder or remove it")
    family, flat = family_of(model), by_path(params)
    tensors = [
        (name, at, layer if is_stacked(at) else None)
        for at in flat
        for layer, name in enumerate(tensor_names(family, at, model.cfg))
    ]
    shards = _shards(tensors, flat, shard_bytes)
    with _landing_together(path) as partial:
        for number, (file, entries) in enumerate(shards):
            mine = processes.is_mine(number)
            held = {}
            for name, at, layer in entries:
                value = _stored(at, flat[at] if layer is None else flat[at][layer], model.cfg)
                if mine:
                    held[name] = value
            if mine:
                write_tensors(partial / file, held)
        if processes.is_writer():
            _write_index(partial, shards, flat, model.cfg)
            _write_beside(partial, model, str(flat["embedding"].dtype), tokenizer, end_id)


def check_export(
    model: Decoder, tokenizer: "PreTrainedTokenizerFast | None", end_id: int | None = None
) -> None:
    """Writes all that ``save_hf`` writes but the tensors, to nowhere.

    Raises:
      UserError: it would fail, as ``transformers`` refuses to save what it has loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            _write_beside(Path(folder), model, model.cfg.param_dtype, tokenizer, end_id)
        except Exception as error:  # whatever transformers' validators raise
            reason = " ".join(str(error).split())
            raise UserError(
                f"the model cannot be exported, transformers says: {reason}; mend the files of "
                "model.init or data.tokenizer"
            ) from error


@contextlib.contextmanager
def _landing_together(path: Path) -> Any:
    """``landing`` of a folder that all processes write into."""
    with contextlib.ExitStack() as stack:
        if processes.is_writer():
            stack.enter_context(landing(path)).mkdir()
        processes.barrier("export begins")
        yield path.with_name(f".{path.name}.partial")
        processes.barrier("export is written")
    processes.barrier("export has landed")


def _shards(tensors: list[Any], flat: dict[str, Any], most: int) -> list[tuple[str, list[Any]]]:
    """(file name, its tensors), in order, each file of at most ``most`` bytes if it can be."""
    groups: list[list[Any]] = [[]]
    held = 0
    for tensor in tensors:
        leaf = flat[tensor[1]]
        size = leaf.nbytes // (1 if tensor[2] is None else leaf.shape[0])
        if groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += size
    if len(groups) == 1:
        return [("model.safetensors", groups[0])]
    count = len(groups)
    return [(f"model-{i:05}-of-{count:05}.safetensors", g) for i, g in enumerate(groups, start=1)]


def _write_index(folder: Path, shards: list[Any], flat: dict[str, Any], cfg: DecoderConfig) -> None:
    if len(shards) == 1:
        return
    files = {name: file for file, entries in shards for name, _, _ in entries}
    total = sum(
        int(np.prod(stored_shape(at, flat[at].shape, cfg))) * flat[at].dtype.itemsize
        for _, entries in shards
        for _, at, _ in entries
    )
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_beside(
    folder: Path,
    model: Decoder,
    dtype: str,
    tokenizer: "PreTrainedTokenizerFast | None",
    end_id: int | None,
) -> None:
    """The configs and the tokenizer."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = hf_config(model)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.dtype = dtype
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    for key in special:
        if getattr(config, key) is None:
            setattr(config, key, getattr(tokenizer, key, None))
    config.eos_token_id = _with_end(config.eos_token_id, end_id)
    config.save_pretrained(folder)
    # Handed on as it was written: GenerationConfig refuses to save what it has loaded.
    generation = json.loads(model.origin or "{}").get("generation_config")
    if generation is None:
        generation = {key: getattr(config, key) for key in special}
    if end_id is not None:
        generation["eos_token_id"] = _with_end(generation.get("eos_token_id"), end_id)
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _with_end(known: int | list[int] | None, end_id: int | None) -> int | list[int] | None:
    """The tokens that end a text, ``end_id`` first if it was none of them."""
    ends = known if isinstance(known, list) else [] if known is None else [known]
    if end_id is None or end_id in ends:
        return known
    return [end_id, *ends] if ends else end_id


def _stored(path: str, leaf: jax.Array, cfg: DecoderConfig) -> np.ndarray:
    """One tensor as the file has it; a collective if ``leaf`` is spread over processes."""
    value = sharding.fetch(leaf)
    value = value.T if families.is_transposed(path) else value
    return np.ascontiguousarray(value[: cfg.vocab_size] if has_vocab(path) else value)
