"""What a layer's input and its output's gradient make, formed where the backward pass has both.

``y`` goes through a tap unchanged. On the way back the tap forms something of ``x`` and ∂ℓ/∂y and
hands it over as the derivative in a zero of that shape: neither is kept for it, and one layer's are
at hand at a time. In a scan over layers a tap's arrays are scanned as the parameters are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

Tree = Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("operands", "zeros"), meta_fields=("fn",)
)
@dataclasses.dataclass(frozen=True)
class Tap:
    """A tap of one layer, or, with a leading axis L on its arrays, of L layers of a scan.

    Attributes:
      fn: ``(x, ∂ℓ/∂y, operands) -> tree``.
      operands: arrays.
      zeros: like what ``fn`` returns; the loss's derivative in them is what ``fn`` returned.
    """

    fn: Callable[[jax.Array, jax.Array, Tree], Tree]
    operands: Tree
    zeros: Tree

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """``y``, which the layer computed from ``x``."""
        return tap(self.fn, x, y, self.operands, self.zeros)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap(
    fn: Callable[[jax.Array, jax.Array, Tree], Tree],
    x: jax.Array,
    y: jax.Array,
    operands: Tree,
    zeros: Tree,
) -> jax.Array:
    """``y``; its derivative in the zeros is ``fn(x, ∂ℓ/∂y, operands)``. See ``Tap``."""
    return y


def _forward(
    fn: Any, x: jax.Array, y: jax.Array, operands: Tree, zeros: Tree
) -> tuple[jax.Array, Any]:
    return y, (x, operands)


def _backward(fn: Any, kept: Any, g: jax.Array) -> tuple[Any, ...]:
    x, operands = kept
    return None, g, None, fn(x, g, operands)


tap.defvjp(_forward, _backward)
