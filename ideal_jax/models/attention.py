"""Rotary positions, visibility and attention: pure functions of arrays."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WHOLE = 1024  # rows up to this many tokens are attended in one piece
_BLOCK = 512  # queries of longer rows are attended so many at a time


class RopeScaling(NamedTuple):
    """How rotary frequencies are stretched to contexts longer than those of pre-training.

    kind: "linear" divides all frequencies by ``factor`` (Chen et al., arXiv 2306.15595); "llama3"
      only those that turn less than ``low`` times in ``original_length`` positions, keeps those
      that turn more than ``high`` times, and blends in between (Llama 3.1).
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


class Places(NamedTuple):
    """Where tokens stand: positions int32[B, T] in their example, segments int32[B, T] its number.

    A token sees those of its own segment that stand no later than itself.
    """

    positions: jax.Array
    segments: jax.Array


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """float64[H/2]: radians per position of each pair of a head's dimensions.

    Source: Su et al., "RoFormer" (arXiv 2104.09864).
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return frequencies
    slowed = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slowed
    turns = scaling.original_length * frequencies / (2 * math.pi)
    keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return keep * frequencies + (1 - keep) * slowed


def rotate(x_BxTxNxH: jax.Array, positions_BxT: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotary position embedding in the half-split layout of Hugging Face's Llama."""
    wide = frequencies.dtype
    angles_BxTx1xH = positions_BxT[:, :, None, None].astype(wide) * frequencies
    sin, cos = jnp.sin(angles_BxTx1xH), jnp.cos(angles_BxTx1xH)
    first, second = jnp.split(x_BxTxNxH.astype(wide), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxTxNxH.dtype)


def visible(queries: Places, keys: Places, window: jax.Array | None = None) -> jax.Array:
    """bool[B, T, C]: may the query (axis 1) see the key (axis 2)?

    Args:
      queries, keys: T and C tokens.
      window: a query also sees no further back than this many tokens, itself included.
    """
    distance_BxTxC = queries.positions[:, :, None] - keys.positions[:, None, :]
    mask = (distance_BxTxC >= 0) & (queries.segments[:, :, None] == keys.segments[:, None, :])
    return mask if window is None else mask & (distance_BxTxC < window)


def attend(
    q_BxTxNxH: jax.Array,
    k_BxCxKxH: jax.Array,
    v_BxCxKxH: jax.Array,
    mask_BxTxC: jax.Array,
    *,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """Scaled dot-product attention BxTxNxH with grouped heads, softmax in float32 or wider.

    Pure JAX, so it has a forward mode: fused kernels (splash, cuDNN) have none, and influence
    scores are forward-mode derivatives.

    Args:
      scale: of the scores.
      softcap: scores pass through softcap·tanh(·/softcap) (Gemma 2); 0: they do not.
    """
    B, T, N, H = q_BxTxNxH.shape
    K = k_BxCxKxH.shape[2]
    # Heads first: products of plain matrices, which XLA:CPU computes 2.5 times as fast.
    q_BxKxGxTxH = (q_BxTxNxH * scale).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BxKxCxH, v_BxKxCxH = k_BxCxKxH.swapaxes(1, 2), v_BxCxKxH.swapaxes(1, 2)
    wide = jnp.promote_types(q_BxTxNxH.dtype, jnp.float32)
    scores = jnp.einsum("bkgth,bkch->bkgtc", q_BxKxGxTxH, k_BxKxCxH, preferred_element_type=wide)
    scores = soft_capped(scores, softcap)
    scores = jnp.where(mask_BxTxC[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxCxKxH.dtype)
    y_BxKxGxTxH = jnp.einsum("bkgtc,bkch->bkgth", weights, v_BxKxCxH)
    return y_BxKxGxTxH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def attend_blocked(
    q_BxTxNxH: jax.Array,
    k_BxCxKxH: jax.Array,
    v_BxCxKxH: jax.Array,
    queries: Places,
    keys: Places,
    window: jax.Array | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """``attend`` under ``visible``, some queries of long rows at a time.

    Scores and mask exist for one block of queries and are recomputed in the backward pass: memory
    grows with T, not T². Pure JAX, so it has every derivative in forward and reverse mode.
    """

    def one(q: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        mask = visible(Places(positions, segments), keys, window)
        return attend(q, k_BxCxKxH, v_BxCxKxH, mask, scale=scale, softcap=softcap)

    rows = (q_BxTxNxH, queries.positions, queries.segments)
    B, T = queries.positions.shape
    if T <= WHOLE:
        return one(*rows)
    pad = -T % _BLOCK

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(B, -1, _BLOCK, *x.shape[2:]).swapaxes(0, 1)

    body = jax.checkpoint(one, prevent_cse=False)  # a loop's body shares nothing to be merged with
    blocks = jax.lax.map(lambda block: body(*block), tuple(split(x) for x in rows))
    return blocks.swapaxes(0, 1).reshape(B, T + pad, *q_BxTxNxH.shape[2:])[:, :T]


def soft_capped(x: jax.Array, cap: float) -> jax.Array:
    """cap·tanh(x/cap), which stays within ±cap; ``x`` itself where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x
