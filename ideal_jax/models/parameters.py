"""Parameter trees of a decoder: abstract, random, and as (path, leaf) pairs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from ideal_jax import sharding
from ideal_jax.errors import UserError
from ideal_jax.models.decoder import Decoder

# Logical axis -> the field of the config that is split over it.
_SIZES = {
    "kv_heads": "n_kv_heads",
    "heads": "n_heads",
    "mlp": "d_ff",
    "embed": "d_model",
    "vocab": "padded_vocab",
}


def abstract_params(model: Decoder, mesh: jax.sharding.Mesh | None = None) -> Any:
    """``jax.ShapeDtypeStruct``s of the parameters, with their shardings if there is a mesh.

    Raises:
      UserError: a dimension is not divisible by its mesh axis.
    """
    boxed = jax.eval_shape(lambda: _init(model, 0))
    plain = nn.unbox(boxed)
    if mesh is None:
        return plain
    _check_sizes(model, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        plain,
        sharding.parameter_shardings(mesh, boxed),
    )


def random_params(
    model: Decoder,
    mesh: jax.sharding.Mesh,
    seed: int,
    part: Callable[[Any], Any] = lambda params: params,
) -> Any:
    """A random initialisation, or only a part of its tree, born sharded."""
    shardings = part(jax.tree.map(lambda x: x.sharding, abstract_params(model, mesh)))
    return sharding.born(mesh, lambda: part(nn.unbox(_init(model, seed))), shardings)


def by_path(params: Any) -> dict[str, Any]:
    """{"layers/attention/q/kernel": leaf, …}."""
    return traverse_util.flatten_dict(params, sep="/")


def from_paths(flat: dict[str, Any]) -> Any:
    """The inverse of ``by_path``."""
    return traverse_util.unflatten_dict(flat, sep="/")


def _check_sizes(model: Decoder, mesh: jax.sharding.Mesh) -> None:
    """Heads are split whole, so their number counts and not the width of what they read."""
    for name, field in _SIZES.items():
        axis, size = sharding.RULES[name], getattr(model.cfg, field)
        assert isinstance(axis, str)
        if size % mesh.shape[axis]:
            raise UserError(
                f"mesh.{axis}={mesh.shape[axis]} does not divide model.{field}={size}; take a "
                "divisor of it, and more of the other mesh axes"
            )


def _init(model: Decoder, seed: int) -> Any:
    return model.init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32))["params"]
