"""Derivatives of each example's loss along directions in parameter space, read in reverse mode.

Where an output y = f(p, x) is linear in its parameter p, a step ε along a direction s adds
ε f(s, x) to it, and ε Σ (∂ℓ/∂y) f(s, x) to the loss: a sum over the example's own tokens. So the
parameters read every direction in one backward pass through the activations, and no parameter's
gradient is stored or communicated. Forward mode takes two passes for each direction.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ideal_jax.taps import tap

# All layers of a scan see its directions whole; its places tell each which are its own.
DIRECTIONS, STEPS, PLACES = "directions", "steps", "places"


class Directions(NamedTuple):
    """Where to read derivatives.

    Attributes:
      tangents: like the parameters, or some of them, with a leading axis of R directions; None
        where there are none.
      steps: zeros [R, B, U]; the loss's derivative in them is what is asked for. By token (U = T),
        or summed over each row (U = 1), which is cheaper: a row's gradient is formed, one layer
        and one parameter at a time, and multiplied with all directions.
    """

    tangents: Any
    steps: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """Collections for ``Decoder.apply``, beside its parameters."""
        steps = jax.tree.map(lambda _: self.steps, self.tangents)
        scanned = {"layers": self.tangents["layers"]} if "layers" in self.tangents else {}
        places = jax.tree.map(lambda s: jnp.arange(s.shape[1]), scanned)
        return {DIRECTIONS: self.tangents, STEPS: steps, PLACES: places}


def read(
    module: nn.Module,
    name: str,
    y: jax.Array,
    f: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
) -> jax.Array:
    """``y``, which is f(p, x) for the module's parameter p of this name, or f(p, x) and more."""
    directions: jax.Array | None = module.get_variable(DIRECTIONS, name)
    if directions is None:
        return y
    steps_RxBxU: jax.Array = module.get_variable(STEPS, name)
    return along(f, y, x, directions, steps_RxBxU, module.get_variable(PLACES, name))


def along(
    f: Callable[[jax.Array, jax.Array], jax.Array],
    y: jax.Array,
    x: jax.Array,
    directions: jax.Array,
    steps_RxBxU: jax.Array,
    place: jax.Array | None = None,
) -> jax.Array:
    """``y``; its derivative in the steps is f(s, x) for every direction s.

    Args:
      f: (p, x) -> y, linear in p, row by row of x.
      y: [B, T, ...].
      x: [B, T, ...]; integers are places in a table, whose gradient is not worth forming.
      directions: R of p's shape, or [R, L, ...] for L layers.
      steps_RxBxU: zeros, see ``Directions``.
      place: which of the L layers this is.
    """
    by_row, wide = steps_RxBxU.shape[2] == 1, steps_RxBxU.dtype

    def reading(x: jax.Array, g: jax.Array, operands: tuple) -> jax.Array:
        directions, place = operands
        directions = directions if place is None else directions[:, place]
        if by_row and not jnp.issubdtype(x.dtype, jnp.integer):
            return _by_row(f, x, g, directions, wide)
        read_RxBxT = _by_token(f, x, g, directions, wide)
        return jnp.sum(read_RxBxT, axis=2, keepdims=True) if by_row else read_RxBxT

    return tap(reading, x, y, (directions, place), steps_RxBxU)


def _by_row(f: Any, x: jax.Array, g: jax.Array, directions: jax.Array, wide: Any) -> jax.Array:
    def row_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
        pull = jax.linear_transpose(lambda p: f(p, x), directions[0].astype(g.dtype))
        return pull(g)[0]

    gradients, axes = jax.vmap(row_gradient)(x, g), tuple(range(1, directions.ndim))
    read_RxB = jnp.tensordot(
        directions.astype(g.dtype), gradients, (axes, axes), preferred_element_type=wide
    )
    return read_RxB[..., None]


def _by_token(f: Any, x: jax.Array, g: jax.Array, directions: jax.Array, wide: Any) -> jax.Array:
    def direction(s: jax.Array) -> jax.Array:
        moved = f(s.astype(g.dtype), x)
        return jnp.sum((g * moved).astype(wide), axis=tuple(range(2, g.ndim)))

    return jax.lax.map(direction, directions)
