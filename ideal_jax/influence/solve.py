"""Preconditioned conjugate gradients for many sides at once, and the smallest eigenvalue."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax import trees
from ideal_jax.influence.problem import Progress, Tree, silent


class Solved(NamedTuple):
    """Solutions of (H + λI) s = g for r right-hand sides.

    Attributes:
      solutions: trees stacked on r.
      residuals: float64[r], ‖(H + λI)s − g‖ / ‖g‖.
      iterations: int64[r], products used until each was within the tolerance; 0 in closed form.
    """

    solutions: Tree
    residuals: np.ndarray
    iterations: np.ndarray


def conjugate_gradients(
    multiply: Callable[[Tree], Tree],
    rhs: Tree,
    *,
    tolerance: float,
    iterations: int,
    precondition: Callable[[Tree], Tree] | None = None,
    progress: Progress = silent,
) -> Solved:
    """Solves ``multiply(s) = g`` for every g on the leading axis of ``rhs``.

    The scalars of the method are kept per right-hand side: one that has reached the tolerance, or
    along whose direction the curvature is not positive, is frozen while the others go on. The
    loop runs on the host, since a product is itself a loop over batches. Memory: five stacks of
    the size of ``rhs``, that one included, beside what a product needs.

    Args:
      multiply: symmetric positive definite operator on stacked trees.
      tolerance: on ‖residual‖ / ‖g‖; 0 runs all the iterations.
      iterations: the most products, beside the one that measures the residual at the end.
      precondition: symmetric positive definite approximation of the inverse.
      progress: called with ("solve", done, iterations).
    """
    norms = _norms(rhs)
    solution = trees.zeros_like(rhs)
    residual = jax.tree.map(jnp.copy, rhs)
    direction = precondition(residual) if precondition else jax.tree.map(jnp.copy, rhs)
    rho = _dots(residual, direction)
    active = norms > 0
    used = np.zeros(norms.shape, np.int64)
    progress("solve", 0, iterations)
    for done in range(1, iterations + 1):
        if not np.any(jax.device_get(active)):
            break
        used += jax.device_get(active)
        product = multiply(direction)
        solution, residual, active = _advance(solution, residual, direction, product, rho, active)
        del product
        preconditioned = precondition(residual) if precondition else residual
        direction, rho, active = _turn(
            direction, preconditioned, residual, rho, active, tolerance * norms
        )
        progress("solve", done, iterations)
    left = jax.device_get(_residuals(multiply(solution), rhs, norms))
    progress("solve", iterations, iterations)
    return Solved(solution, np.asarray(left, np.float64), used)


def smallest_ritz_value(
    multiply: Callable[[Tree], Tree],
    start: Tree,
    iterations: int,
    *,
    progress: Progress = silent,
) -> float:
    """The smallest Ritz value of a symmetric operator after Lanczos iteration from ``start``.

    It approaches the smallest eigenvalue from above. No basis is kept: lost orthogonality brings
    copies of extreme Ritz values, not wrong ones. Memory: four trees like ``start``.

    Args:
      multiply: as for ``conjugate_gradients``; gets stacks of one tree.
      start: one tree, not stacked, not zero.
      iterations: the most products.

    Returns:
      NaN where a product is not finite.
    """
    vector = jax.tree.map(lambda x: x[None], start)
    vector = trees.scale(vector, 1 / _norms(vector)[0])
    previous, beta = trees.zeros_like(vector), 0.0
    diagonal: list[float] = []
    off: list[float] = []
    progress("smallest eigenvalue", 0, iterations)
    for done in range(1, iterations + 1):
        product = multiply(vector)
        diagonal.append(float(_dots(vector, product)[0]))
        product = trees.add(trees.add(product, vector, -diagonal[-1]), previous, -beta)
        beta = float(_norms(product)[0])
        if not np.isfinite(beta):
            return float("nan")
        if done == iterations or beta <= 1e-6 * max(map(abs, diagonal)):
            break  # or: the space that ``start`` spans is exhausted
        off.append(beta)
        previous, vector = vector, trees.scale(product, 1 / beta)
        progress("smallest eigenvalue", done, iterations)
    progress("smallest eigenvalue", iterations, iterations)
    tridiagonal = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
    return float(np.linalg.eigvalsh(tridiagonal)[0])


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _advance(
    solution: Tree,
    residual: Tree,
    direction: Tree,
    product: Tree,
    rho: jax.Array,
    active: jax.Array,
) -> tuple[Tree, Tree, jax.Array]:
    curvature = _dots(direction, product)
    active = active & (curvature > 0)
    step = jnp.where(active, rho / jnp.where(active, curvature, 1), 0)
    return _axpy(step, direction, solution), _axpy(-step, product, residual), active


@functools.partial(jax.jit, donate_argnums=0)
def _turn(
    direction: Tree,
    preconditioned: Tree,
    residual: Tree,
    rho: jax.Array,
    active: jax.Array,
    allowed: jax.Array,
) -> tuple[Tree, jax.Array, jax.Array]:
    active = active & (_norms(residual) > allowed)
    new = _dots(residual, preconditioned)
    ratio = jnp.where(active, new / jnp.where(active, rho, 1), 0)
    return _axpy(ratio, direction, preconditioned), new, active


def _axpy(factors: jax.Array, x: Tree, y: Tree) -> Tree:
    """``factors[r] * x[r] + y[r]``."""
    return jax.vmap(lambda f, a, b: jax.tree.map(lambda u, v: f.astype(u.dtype) * u + v, a, b))(
        factors, x, y
    )


@jax.jit
def _dots(a: Tree, b: Tree) -> jax.Array:
    return jax.vmap(trees.dot)(a, b)


@jax.jit
def _norms(a: Tree) -> jax.Array:
    return jax.vmap(trees.norm)(a)


@jax.jit
def _residuals(product: Tree, rhs: Tree, norms: jax.Array) -> jax.Array:
    left = _norms(jax.tree.map(jnp.subtract, product, rhs))
    return jnp.where(norms > 0, left / jnp.where(norms > 0, norms, 1), left)
