"""By what a component along an eigenvector of the curvature is divided: the rules of inversion."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Rule = Callable[[jax.Array, jax.Array], jax.Array]


def damped(eigenvalues: jax.Array, damping: jax.Array) -> jax.Array:
    """e + λ: the damped inverse, (H + λI)⁻¹."""
    return eigenvalues + damping


def pseudoinverse(eigenvalues: jax.Array, damping: jax.Array) -> jax.Array:
    """e where e > λ, else ∞: directions of less curvature are cut off, the others not damped."""
    return jnp.where(eigenvalues > damping, eigenvalues, jnp.inf)


def tikhonov(inputs: jax.Array, outputs: jax.Array, damping: jax.Array) -> jax.Array:
    """(a + π√λ)(g + √λ/π): factored Tikhonov damping of A ⊗ G, π² = mean a / mean g.

    Martens and Grosse 2015 (arXiv 1503.05671), §6.3. A factor of zeros leaves π = 1.

    Args:
      inputs, outputs: eigenvalues of A, [L, I], and of G, [L, O].
      damping: λ, [L].

    Returns:
      [L, I, O].
    """
    a, g = jnp.mean(inputs, 1), jnp.mean(outputs, 1)
    ratio = jnp.where((a > 0) & (g > 0), a / jnp.where(g > 0, g, 1), 1)
    pi, root = jnp.sqrt(ratio)[:, None], jnp.sqrt(damping)[:, None]
    return (inputs + pi * root)[:, :, None] * (outputs + root / pi)[:, None, :]


# Rules of the eigenvalues alone; "tikhonov" needs those of the factors.
RULES: dict[str, Rule] = {
    "damped": damped,
    "pseudoinverse": pseudoinverse,
}
