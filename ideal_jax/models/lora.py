"""Low-rank adapters: a frozen tree and a trained one, and what they are together.

The decoder's parameters then are two trees with the same paths above the leaves: everything that
was there before, frozen, and ``lora_a`` (I×r) and ``lora_b`` (r×O) under every dense layer that has
an adapter. Only the second is differentiated. The frozen tree rides in the batch, which is what a
loss gets besides the parameters.
"""

from collections.abc import Mapping
from typing import Any

import jax

from ideal_jax.models.config import DecoderConfig
from ideal_jax.models.parameters import by_path, from_paths

FROZEN = "frozen"  # key of a batch


def split(params: Any) -> tuple[Any, Any]:
    """(frozen, adapters) of a decoder's whole tree."""
    flat = by_path(params)
    adapters = {path: leaf for path, leaf in flat.items() if _is_adapter(path)}
    frozen = {path: leaf for path, leaf in flat.items() if not _is_adapter(path)}
    return from_paths(frozen), from_paths(adapters)


def all_params(params: Any, batch: Mapping[str, Any]) -> Any:
    """The tree for ``model.apply``: the trained parameters and the batch's frozen ones."""
    if FROZEN not in batch:
        return params
    return from_paths({**by_path(batch[FROZEN]), **by_path(params)})


def with_frozen(batch: Mapping[str, Any], frozen: Any) -> dict[str, Any]:
    """The batch, with the parameters that are not trained if there are any."""
    return {**batch, FROZEN: frozen} if frozen else dict(batch)


def rows_and_frozen(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """What ``with_frozen`` put together: arrays with one entry a row, and parameters or None."""
    return {name: x for name, x in batch.items() if name != FROZEN}, batch.get(FROZEN)


def merged(cfg: DecoderConfig, frozen: Any, adapters: Any) -> Any:
    """One tree without adapters that computes the same: W + (alpha/r)·A·B, sharded as W.

    Summed in the dtype of W; float32 agrees with the adapters beside it to rounding.
    """
    if cfg.lora is None:
        return adapters
    scale = cfg.lora.alpha / cfg.lora.rank
    flat = by_path(adapters)

    def add(frozen: Any, flat: Any) -> Any:
        whole = dict(by_path(frozen))
        for path in [p for p in whole if p.replace("/kernel", "/lora_a/kernel") in flat]:
            a = flat[path.replace("/kernel", "/lora_a/kernel")]
            b = flat[path.replace("/kernel", "/lora_b/kernel")]
            whole[path] = (whole[path] + scale * (a @ b)).astype(whole[path].dtype)
        return from_paths(whole)

    shardings = jax.tree.map(lambda x: x.sharding, frozen)
    return jax.jit(add, out_shardings=shardings)(frozen, flat)


def _is_adapter(path: str) -> bool:
    return "/lora_a/" in path or "/lora_b/" in path
