"""Visibility and attention: pure functions of arrays."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128  # queries at a time, in rows of up to ``_SHORT`` tokens
_SHORT = 1024
_LONG_BLOCK = 512  # queries at a time, in longer rows


class Places(NamedTuple):
    """Where tokens stand: positions int32[B, T] in their example, segments int32[B, T] its number.

    A token sees those of its own segment that stand no later than itself.
    """

    positions: jax.Array
    segments: jax.Array


def lengths(places: Places) -> jax.Array:
    """int32[B, T]: tokens of each token's example, from position 0 to its last one here."""
    same_BxTxT = places.segments[:, :, None] == places.segments[:, None, :]
    return jnp.max(jnp.where(same_BxTxT, places.positions[:, None, :], 0), axis=2) + 1


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

    Pure JAX, so it has a forward mode, which exact curvature and a single tangent's scores take:
    fused kernels (splash, cuDNN) have none.

    Args:
      scale: of the scores.
      softcap: scores pass through softcap·tanh(·/softcap) (Gemma 2); 0: they do not.
    """
    q, k, v = heads_first(q_BxTxNxH * scale, k_BxCxKxH, v_BxCxKxH)
    return heads_last(_attend(q, k, v, mask_BxTxC, softcap))


def heads_first(q_BxTxNxH: jax.Array, *kv_BxCxKxH: jax.Array) -> tuple[jax.Array, ...]:
    """q_BxKxGxTxH, and keys and values as BxKxCxH.

    XLA:CPU multiplies plain matrices 2.5 times as fast.
    """
    B, T, N, H = q_BxTxNxH.shape
    K = kv_BxCxKxH[0].shape[2]
    q_BxKxGxTxH = q_BxTxNxH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    return q_BxKxGxTxH, *(x.swapaxes(1, 2) for x in kv_BxCxKxH)


def heads_last(y_BxKxGxTxH: jax.Array) -> jax.Array:
    """BxTxNxH again."""
    B, K, G, T, H = y_BxKxGxTxH.shape
    return y_BxKxGxTxH.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def _attend(
    q_BxKxGxTxH: jax.Array,
    k_BxKxCxH: jax.Array,
    v_BxKxCxH: jax.Array,
    mask_BxTxC: jax.Array,
    softcap: float,
) -> jax.Array:
    wide = jnp.promote_types(q_BxKxGxTxH.dtype, jnp.float32)
    B, K, G, T, H = q_BxKxGxTxH.shape
    # The heads of a group as further queries: XLA:CPU copies what contracts two axes.
    q_BxKxQxH = q_BxKxGxTxH.reshape(B, K, G * T, H)
    scores = jnp.einsum("bkqh,bkch->bkqc", q_BxKxQxH, k_BxKxCxH, preferred_element_type=wide)
    scores = soft_capped(scores, softcap)
    mask_BxQxC = jnp.tile(mask_BxTxC, (1, G, 1))
    scores = jnp.where(mask_BxQxC[:, None], scores, jnp.finfo(scores.dtype).min)
    greatest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    # Divided by their sum behind the product, where there is least to divide and differentiate.
    weights = jnp.exp(scores - greatest)
    y = jnp.einsum("bkqc,bkch->bkqh", weights.astype(v_BxKxCxH.dtype), v_BxKxCxH)
    y = y / jnp.sum(weights, axis=-1, keepdims=True).astype(y.dtype)
    return y.reshape(B, K, G, T, H)


def attend_blocked(
    q_BxTxNxH: jax.Array,
    k_BxTxKxH: jax.Array,
    v_BxTxKxH: jax.Array,
    places: Places,
    window: jax.Array | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """``attend`` under ``visible`` where queries and keys are the same tokens, some at a time.

    In a short row, a block of queries meets no keys after itself. In a long one it meets all, but
    scores and mask exist for one block alone and are recomputed in the backward pass: memory grows
    with T, not T². Pure JAX, so it has every derivative in forward and reverse mode.
    """

    q, k, v = heads_first(q_BxTxNxH * scale, k_BxTxKxH, v_BxTxKxH)

    def some(q: jax.Array, queries: Places, seen: int) -> jax.Array:
        mask = visible(queries, Places(*(x[:, :seen] for x in places)), window)
        return _attend(q, k[:, :, :seen], v[:, :, :seen], mask, softcap)

    T = places.positions.shape[1]
    if T <= _SHORT:
        blocks = []
        for begin in range(0, T, BLOCK):
            end = min(begin + BLOCK, T)
            queries = Places(*(x[:, begin:end] for x in places))
            blocks.append(some(q[..., begin:end, :], queries, end))
        return heads_last(jnp.concatenate(blocks, axis=3))
    pad, count = -T % _LONG_BLOCK, -(-T // _LONG_BLOCK)

    def split(x: jax.Array, axis: int) -> jax.Array:
        x = jnp.pad(x, [(0, pad if i == axis else 0) for i in range(x.ndim)])
        x = x.reshape(*x.shape[:axis], count, _LONG_BLOCK, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    # A loop's body shares nothing that could be merged with something else.
    body = jax.checkpoint(functools.partial(some, seen=T), prevent_cse=False)
    rows = split(q, 3), Places(*(split(x, 1) for x in places))
    y = jnp.moveaxis(jax.lax.map(lambda block: body(*block), rows), 0, 3)
    return heads_last(y.reshape(*q.shape[:3], T + pad, q.shape[-1]))[:, :T]


def soft_capped(x: jax.Array, cap: float) -> jax.Array:
    """cap·tanh(x/cap), which stays within ±cap; ``x`` itself where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x
