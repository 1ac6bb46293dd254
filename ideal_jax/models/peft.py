"""Adapters in the format of Hugging Face's PEFT library."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ideal_jax import processes, sharding
from ideal_jax.errors import UserError
from ideal_jax.landing import landing
from ideal_jax.models.decoder import Decoder
from ideal_jax.models.families import tensor_name
from ideal_jax.models.huggingface import family_of
from ideal_jax.models.parameters import by_path
from ideal_jax.models.safetensors_files import write_tensors


def save_peft(path: str | Path, model: Decoder, adapters: Any, base: str) -> None:
    """Writes a folder that ``peft.PeftModel.from_pretrained(base_model, path)`` loads.

    All processes call it together; process 0 writes.

    Args:
      path: the folder; must not exist.
      model: its config says what the adapters are.
      adapters: the trained tree.
      base: folder of Hugging Face, or name on the hub, of the model they belong to.

    Raises:
      UserError: there is something at ``path``.
    """
    path, lora = Path(path), model.cfg.lora
    if lora is None:
        raise ValueError("the model has no adapters")
    if path.exists():
        raise UserError(f"{path} exists already; choose another folder or remove it")
    tensors: dict[str, np.ndarray] = {}
    modules = set()
    for at, leaf in by_path(adapters).items():
        dense, _, kind = at.removesuffix("/kernel").rpartition("/")
        side = {"lora_a": "lora_A", "lora_b": "lora_B"}[kind]
        value = np.asarray(sharding.fetch(leaf))
        for layer in range(model.cfg.n_layers):
            name = tensor_name(family_of(model), f"{dense}/kernel", layer).removesuffix(".weight")
            modules.add(name.rpartition(".")[2])
            tensor = np.ascontiguousarray(value[layer].T)
            tensors[f"base_model.model.{name}.{side}.weight"] = tensor
    if processes.is_writer():
        with landing(path) as partial:
            partial.mkdir()
            write_tensors(partial / "adapter_model.safetensors", tensors)
            config = {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base,
                "r": lora.rank,
                "lora_alpha": lora.alpha,
                "lora_dropout": lora.dropout,
                "target_modules": sorted(modules),
                "bias": "none",
                "inference_mode": True,
            }
            (partial / "adapter_config.json").write_text(json.dumps(config, indent=2))


def name_base(path: Path, base: str) -> None:
    """Makes a folder that ``save_peft`` wrote name ``base`` as the model it belongs to."""
    file = path / "adapter_config.json"
    config = json.loads(file.read_text())
    if config["base_model_name_or_path"] != base:
        with landing(file) as partial:
            partial.write_text(json.dumps({**config, "base_model_name_or_path": base}, indent=2))
