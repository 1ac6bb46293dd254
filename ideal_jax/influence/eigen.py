"""Eigendecomposition of large symmetric matrices, by the platform's own method or by blocks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Pairs of blocks this wide are decomposed by XLA's own Jacobi method, which TPUs have up to 256.
_BLOCK = 64
_SMALL = 256
_TOLERANCE = 3e-6  # what float32 rounding leaves off the diagonal
_SWEEPS = 24

_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [n], ascending, and eigenvectors [n, n] in columns of a symmetric matrix.

    LAPACK or cuSOLVER on CPU and GPU. On TPU XLA unrolls its method for every size it may need:
    1024 takes minutes to compile and 214 MiB of code, 8192 never ended. There: ``by_blocks``.
    """
    if matrix.shape[-1] <= _SMALL:
        return tuple(jnp.linalg.eigh(matrix))
    return jax.lax.platform_dependent(
        matrix, tpu=by_blocks, default=lambda x: tuple(jnp.linalg.eigh(x))
    )


def by_blocks(matrix: jax.Array, block: int = _BLOCK) -> tuple[jax.Array, jax.Array]:
    """``eigh`` by a block Jacobi method: matrix products and many small decompositions.

    All pairs of blocks meet once in a sweep, half as many pairs at a time as there are blocks
    (Golub and Van Loan, 4th ed., §8.5). A sweep costs 12 n³ FLOPs.
    """
    n = matrix.shape[0]
    blocks = 2 * -(-n // (2 * block))
    size = jnp.linalg.norm(matrix)
    padding = blocks * block - n
    # The eigenvalues of the padding lie below all others, and so apart from them.
    edge = jnp.concatenate([jnp.zeros(n), jnp.full(padding, -2)]).astype(matrix.dtype)
    whole = jnp.pad(matrix, ((0, padding), (0, padding))) + jnp.diag(
        edge * jnp.where(size > 0, size, 1)
    )
    order = _next_round(blocks)

    def turn(_: int, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        a, vectors = pair
        turns = _diagonalising(a, 2 * block)
        a = _times_blocks(_times_blocks(a, turns).T, turns)
        a = _shuffled(_shuffled(a, order, block).T, order, block)
        return a, _shuffled(_times_blocks(vectors, turns), order, block)

    def going(state: Any) -> jax.Array:
        sweeps, a, _ = state
        off = jnp.linalg.norm(a - jnp.diag(jnp.diag(a)))
        return (sweeps < _SWEEPS) & (off > _TOLERANCE * size)

    def sweep(state: Any) -> Any:
        sweeps, a, vectors = state
        return sweeps + 1, *jax.lax.fori_loop(0, blocks - 1, turn, (a, vectors))

    start = (jnp.zeros((), jnp.int32), whole, jnp.eye(len(whole), dtype=matrix.dtype))
    _, _, vectors = jax.lax.while_loop(going, sweep, start)
    # A thousand products later the vectors are orthonormal to 1e-4; one Newton step mends it.
    vectors = 1.5 * vectors - 0.5 * _multiply(vectors, _multiply(vectors.T, vectors))
    values = jnp.sum(vectors * _multiply(whole, vectors), axis=0)
    chosen = jnp.argsort(values)[padding:]
    return values[chosen], vectors[:n, chosen]


def _diagonalising(a: jax.Array, width: int) -> jax.Array:
    """Eigenvectors of the diagonal blocks, in the order that changes these blocks least."""
    count = a.shape[0] // width
    here = jnp.arange(count)
    diagonal = a.reshape(count, width, count, width)[here, :, here, :]
    vectors = jnp.linalg.eigh((diagonal + diagonal.swapaxes(1, 2)) / 2)[1]
    # Sorted by eigenvalue they would move between blocks, and the sweeps would not converge.
    ranks = jnp.argsort(jnp.argsort(jnp.diagonal(diagonal, axis1=1, axis2=2)))
    return jnp.take_along_axis(vectors, ranks[:, None, :], axis=2)


def _times_blocks(x: jax.Array, blocks: jax.Array) -> jax.Array:
    """``x`` times a block-diagonal matrix."""
    parts = x.reshape(len(x), *blocks.shape[:2])
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("rpk,pkc->rpc", parts, blocks, precision=exact).reshape(x.shape)


def _shuffled(x: jax.Array, order: np.ndarray, block: int) -> jax.Array:
    """The columns, block by block, in another order."""
    return x.reshape(len(x), len(order), block)[:, order].reshape(x.shape)


def _next_round(count: int) -> np.ndarray:
    """Where each of an even number of players comes from when all of 2k and 2k + 1 have met.

    The circle method of tournaments: the first stays, the others move on by one seat; seats i and
    count − 1 − i are opposite, and here side by side.
    """
    opposite = np.stack([np.arange(count // 2), count - 1 - np.arange(count // 2)], axis=1)
    seats = opposite.reshape(-1)
    came_from = np.concatenate([[0], np.roll(np.arange(1, count), 1)])
    return np.argsort(seats)[came_from[seats]]
