"""M_0, the model that every round starts from: which one, and its parameters.

``model.init`` is "random" (a decoder of the config's shape, pre-trained here), the ``base/`` or
``rounds/NN`` of another run, or a folder or name of Hugging Face. With adapters (``lora.rank``) M_0
stays as it is and training starts from adapters that change nothing.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax

from ideal_jax import sealed
from ideal_jax.errors import UserError
from ideal_jax.models import (
    Decoder,
    DecoderConfig,
    LoRA,
    abstract_params,
    check_tensors,
    choose_attention,
    hf_folder,
    hf_model,
    hf_remarks,
    lora,
    random_params,
    read_params,
)
from ideal_jax.training.checkpoints import load_params, saved_model

RANDOM = "random"


class Start(NamedTuple):
    """Where training starts: ``params`` are trained, ``frozen`` are not ({}: there are none)."""

    params: Any
    frozen: Any


def check_model(config: Any) -> None:
    """What can be told about the ``model`` and ``lora`` sections before any work.

    Raises:
      UserError: names the key, or the folder that holds no model.
    """
    model = config.model
    if model.n_heads % model.n_kv_heads:
        raise UserError(
            f"model.n_heads={model.n_heads} is no multiple of model.n_kv_heads={model.n_kv_heads}"
        )
    if model.head_dim % 2:
        raise UserError(
            f"model.head_dim={model.head_dim}: must be even, rotary positions turn pairs"
        )
    if model.init != RANDOM:
        open_model(config, 0)


def open_model(config: Any, vocab_size: int) -> Decoder:
    """The decoder to train.

    Args:
      config: a folder in ``model.init`` decides the shape; the ``model`` section that of a random
        model and, always, dtypes, remat and unroll. Attention is left to ``with_attention``.
      vocab_size: of a random model.

    Raises:
      UserError: no model in ``model.init``, or adapters of one that is gone.
    """
    options = config.model
    placed = {key: options[key] for key in ("dtype", "param_dtype", "remat", "unroll")}
    if options.init == RANDOM:
        shape = {key: value for key, value in options.items() if key not in ("init", "attention")}
        model = Decoder(DecoderConfig(vocab_size=vocab_size, **shape))
    elif is_ours(options.init):
        model, base = saved_model(folder_of(options.init))
        if base:
            _refuse_lost(options.init, base)
    else:
        folder = hf_folder(options.init)
        model = hf_model(folder, options.param_dtype)
        check_tensors(folder, model)
    cfg = dataclasses.replace(model.cfg, **placed)
    model = Decoder(dataclasses.replace(cfg, lora=_adapters(config, cfg)), model.origin)
    if model.cfg.lora is not None and not lora.split(abstract_params(model))[1]:
        raise UserError(
            f"lora.target={model.cfg.lora.target!r} is in the path of no dense layer; they are "
            "called attention/q, k, v, o and mlp/gate, up, down"
        )
    return model


def remarks(config: Any, model: Decoder) -> list[str]:
    """Lines that a user should hear once about the model in ``model.init``."""
    if config.model.init == RANDOM or is_ours(config.model.init):
        return []
    return hf_remarks(hf_folder(config.model.init), model)


def with_attention(config: Any, model: Decoder, mesh: jax.sharding.Mesh) -> Decoder:
    """The decoder with the attention kernel that ``model.attention`` means on these devices.

    Raises:
      UserError: the kernel that was asked for cannot run it here.
    """
    device = mesh.devices.flat[0]
    kernel = choose_attention(
        config.model.attention,
        model.cfg,
        platform=device.platform,
        row_length=config.data.row_length,
        tensor=mesh.shape["tensor"],
    )
    hopper = kernel == "cudnn" and float(getattr(device, "compute_capability", 0)) >= 9
    most = config.data.max_segments + 1 if hopper else 0
    cfg = dataclasses.replace(model.cfg, attention=kernel, max_segments=most)
    return Decoder(cfg, model.origin)


def is_ours(init: str) -> bool:
    """Whether another run wrote the folder; a missing one is told as if it had."""
    folder = folder_of(init)
    if (folder / "model.json").exists() or (
        folder.exists() and not (folder / "config.json").exists()
    ):
        return True
    return not folder.exists() and init.count("/") != 1


def folder_of(init: str) -> pathlib.Path:
    """The folder that ``model.init`` names, if it is none on the hub."""
    return pathlib.Path(init).expanduser()


def without_adapters(model: Decoder) -> Decoder:
    """The decoder that ``lora.merged`` parameters are of."""
    return Decoder(dataclasses.replace(model.cfg, lora=None), model.origin)


def init_start(config: Any, model: Decoder, mesh: jax.sharding.Mesh) -> Start:
    """Where training starts from the folder in ``model.init``."""
    if not is_ours(config.model.init):
        folder = hf_folder(config.model.init)
        return adapted(config, model, mesh, read_params(folder, without_adapters(model), mesh))
    folder = folder_of(config.model.init)
    saved, base = saved_model(folder)
    if saved.cfg.lora is None:
        whole = _load(folder, abstract_params(without_adapters(model), mesh))
        return adapted(config, model, mesh, whole)
    abstract = lora.split(abstract_params(model, mesh))[1]
    under = config.copy_and_resolve_references()
    with under.unlocked():
        under.model.init, under.lora.rank = base, 0
    return Start(_load(folder, abstract), init_start(under, model, mesh).params)


def trained_in(folder: pathlib.Path, config: Any, model: Decoder, mesh: jax.sharding.Mesh) -> Start:
    """The parameters that a training of this model has left in ``folder``."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.init, config.lora.rank = str(folder), 0
    return init_start(config, model, mesh)


def _load(folder: pathlib.Path, abstract: Any) -> Any:
    """What a run trained, checked by the digest in its record, if that is there."""
    file = folder / "train.json"
    try:
        return load_params(folder, abstract, sealed.read(file)["params_sha256"])
    except FileNotFoundError:
        return load_params(folder, abstract)


def frozen_folder(init: str) -> str:
    """The folder (or hub name) of the parameters under the adapters of ``model.init``."""
    if not is_ours(init):
        return str(folder_of(init).absolute()) if folder_of(init).exists() else init
    base = saved_model(folder_of(init))[1]
    return base or str(folder_of(init).absolute())


def _refuse_lost(init: str, base: str) -> None:
    """Refuses adapters whose model is gone."""
    folder = folder_of(base)
    if is_ours(base) and not (folder / "model.json").exists():
        raise UserError(
            f"model.init={init} holds adapters of the model {base}, which is not there; put it "
            f'back, or give its new place as "base" in {folder_of(init) / "model.json"}'
        )


def adapted(config: Any, model: Decoder, mesh: jax.sharding.Mesh, whole: Any) -> Start:
    """The start at ``whole`` parameters of M_0: these, or fresh adapters beside them."""
    if model.cfg.lora is None or not config.lora.rank:
        return Start(whole, {})
    adapters = random_params(model, mesh, config.seed, part=lambda params: lora.split(params)[1])
    return Start(adapters, whole)


def _adapters(config: Any, cfg: DecoderConfig) -> LoRA | None:
    """The config's adapters, or those that the model in ``model.init`` has."""
    wanted = config.lora
    if not wanted.rank:
        return cfg.lora
    asked = LoRA(wanted.rank, wanted.alpha, wanted.dropout, wanted.target)
    if cfg.lora is not None and cfg.lora != asked:
        raise UserError(
            f"model.init={config.model.init} has adapters {tuple(cfg.lora)}, the lora section asks "
            f"for {tuple(asked)}; set lora.rank=0 to go on with those it has"
        )
    return asked
