"""Hugging Face folders as decoders: every host reads its own shards, slice by slice."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.models import families
from ideal_jax.models.config import DecoderConfig
from ideal_jax.models.config_keys import check_keys
from ideal_jax.models.decoder import Decoder
from ideal_jax.models.parameters import abstract_params, by_path, from_paths
from ideal_jax.models.safetensors_files import SafetensorsFolder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load_hf(
    path_or_name: str | Path, *, mesh: jax.sharding.Mesh | None = None, dtype: str = "float32"
) -> tuple[Decoder, Any]:
    """A checkpoint of Hugging Face: (model, params).

    ``model.apply({"params": params}, tokens_BxT) -> logits_BxTxV``.

    Args:
      path_or_name: a folder with config.json and safetensors, or a name on the hub.
      mesh: parameters are read straight into their shards on it; None: on one device.
      dtype: of parameters and activations.

    Raises:
      UserError: not a checkpoint, not of a known family, or with a value in its config that the
        decoder does not compute; names it.

    Warns:
      UserWarning: ``hf_remarks``.
    """
    folder = hf_folder(path_or_name)
    model = hf_model(folder, dtype)
    for remark in hf_remarks(folder, model):
        warnings.warn(remark, stacklevel=2)
    return model, read_params(folder, model, mesh)


def hf_folder(path_or_name: str | Path) -> Path:
    """The folder itself, or the hub's files of that name in the local cache."""
    folder = Path(path_or_name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or Path(path_or_name).is_absolute() or str(path_or_name).count("/") != 1:
        raise UserError(f"{path_or_name} holds no config.json; give a folder of Hugging Face")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(path_or_name),
                allow_patterns=["*.json", "*.jinja", "*.safetensors", "*.model", "merges.txt"],
            )
        )
    except Exception as error:  # the hub's client has dozens, and all mean the same to a user
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path_or_name}: no such folder, and the hub says: {reason}") from error


def hf_model(folder: Path, dtype: str) -> Decoder:
    """The decoder that a folder's config.json describes.

    Where it says that the output matrix is the embedding and the weights hold another one, theirs
    counts, as in ``transformers``.

    Raises:
      UserError: config.json or generation_config.json is no such file, or has a value that the
        decoder does not compute; names it.
    """
    config, _ = _read_config(folder)
    if config.tie_word_embeddings and _has_own_head(folder):
        config.tie_word_embeddings = False
    cfg = families.decoder_config(config, str(folder / "config.json"), dtype)
    origin = {"config": config.to_dict()}
    if (generation := folder / "generation_config.json").exists():
        origin["generation_config"] = _read_object(generation)
    return Decoder(cfg, json.dumps(origin))


def hf_remarks(folder: Path, model: Decoder) -> list[str]:
    """Lines that a user should hear once about a folder and what ``hf_model`` made of it."""
    config, unread = _read_config(folder)
    remarks = []
    if unread:
        remarks.append(
            f"{folder / 'config.json'}: no effect in transformers, and none here: "
            f"{', '.join(unread)}"
        )
    if config.tie_word_embeddings and not model.cfg.tie_embeddings:
        remarks.append(
            f"{folder}: config.json says tie_word_embeddings, but lm_head.weight is another matrix "
            "than the embedding; both are used, and an export says so"
        )
    return remarks


def _read_config(folder: Path) -> tuple["PreTrainedConfig", list[str]]:
    """config.json, and its keys that nobody reads."""
    from transformers import AutoConfig

    file = folder / "config.json"
    values = _read_object(file)
    try:
        families.find_family(values.get("model_type", ""), str(file))
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        family = families.find_family(config.model_type, str(file))
        return config, check_keys(config, values, family.reads, str(file))
    except UserError:
        raise
    except Exception as error:  # its validators have dozens, and all mean the same to a user
        raise UserError(f"{file}: not a valid config: {' '.join(str(error).split())}") from error


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON: {error}; download it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: holds no JSON object; download it again")
    return values


def _has_own_head(folder: Path) -> bool:
    """Whether the weights hold an output matrix that is not the embedding."""
    embedding, head = (families.OUTSIDE[x] for x in ("embedding", "head/kernel"))
    try:
        files = SafetensorsFolder(folder)
        if head not in files:
            return False
        shape = files.shape(head)
        if files.shape(embedding) != shape:
            return True
    except UserError:  # ``check_tensors`` says what is wrong with the weights
        return False
    parts = [
        (slice(i, min(i + 4096, shape[0])), slice(0, shape[1])) for i in range(0, shape[0], 4096)
    ]
    return not all(
        np.array_equal(files.read(head, part), files.read(embedding, part)) for part in parts
    )


def check_tensors(folder: Path, model: Decoder) -> None:
    """Whether ``read_params`` will find what it wants; reads no more than the files' headers.

    Raises:
      UserError: a tensor is missing, has another shape, or is none of the model's; names it.
    """
    files, family = SafetensorsFolder(folder), family_of(model)
    used = set()
    for path, leaf in by_path(abstract_params(model)).items():
        expected = stored_shape(path, leaf.shape, model.cfg)
        for name in tensor_names(family, path, model.cfg):
            used.add(name)
            if files.shape(name) != expected:
                raise UserError(f"{folder}: {name} is {files.shape(name)}, expected {expected}")
    for name in files:
        # Tied weights may be stored twice; old checkpoints store rotary tables.
        tied = name == "lm_head.weight" and model.cfg.tie_embeddings
        if name not in used and not tied and not name.endswith("rotary_emb.inv_freq"):
            raise UserError(
                f"{folder}: {name} is no tensor of a {hf_config(model).model_type} model"
            )


def read_params(folder: Path, model: Decoder, mesh: jax.sharding.Mesh | None = None) -> Any:
    """The parameters of ``hf_model(folder)``, each shard read from the files by who keeps it.

    Raises:
      UserError: as ``check_tensors``.
    """
    check_tensors(folder, model)
    files, family = SafetensorsFolder(folder), family_of(model)
    abstract = by_path(abstract_params(model, mesh))

    def make(path: str, leaf: Any) -> jax.Array:
        names, flip = tensor_names(family, path, model.cfg), families.is_transposed(path)

        def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
            part = files.read(name, index[::-1] if flip else index)
            return (part.T if flip else part).astype(leaf.dtype, copy=False)

        def shard(index: Any) -> np.ndarray:
            index = tuple(
                slice(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True)
            )
            if not is_stacked(path):
                return read(names[0], index)
            return np.stack([read(name, index[1:]) for name in names[index[0]]])

        placed = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.make_array_from_callback(leaf.shape, placed, shard)

    return from_paths({path: make(path, leaf) for path, leaf in abstract.items()})


def hf_config(model: Decoder) -> "PreTrainedConfig":
    """The Hugging Face config of a decoder: its origin's, or Llama's."""
    from transformers import AutoConfig, LlamaConfig

    if model.origin:
        values = json.loads(model.origin)["config"]
        return AutoConfig.for_model(**values)
    c = model.cfg
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        intermediate_size=c.d_ff,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )
    plain = dataclasses.replace(c, attention="xla", remat="none", unroll=1, lora=None)
    meant = families.decoder_config(config, "the decoder", c.dtype)
    if dataclasses.replace(meant, param_dtype=c.param_dtype) != plain:
        raise ValueError("a decoder that load_hf did not give must have Llama's shape")
    return config


def family_of(model: Decoder) -> families.Family:
    """The family of a decoder."""
    return families.find_family(hf_config(model).model_type, "the decoder")


def is_stacked(path: str) -> bool:
    """Whether the parameter holds all layers, along its first axis."""
    return path.startswith("layers/")


def tensor_names(family: families.Family, path: str, cfg: DecoderConfig) -> list[str]:
    """Hugging Face's name of every layer's part of a parameter."""
    layers = range(cfg.n_layers) if is_stacked(path) else (None,)
    return [families.tensor_name(family, path, layer) for layer in layers]


def stored_shape(path: str, shape: tuple[int, ...], cfg: DecoderConfig) -> tuple[int, ...]:
    """The shape in the file: one layer, transposed, without the padding of the vocabulary."""
    shape = shape[1:] if is_stacked(path) else shape
    shape = shape[::-1] if families.is_transposed(path) else shape
    return (cfg.vocab_size, *shape[1:]) if has_vocab(path) else shape


def has_vocab(path: str) -> bool:
    """Whether the stored tensor has the vocabulary as its first axis."""
    return path in ("embedding", "head/kernel")
