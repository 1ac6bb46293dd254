"""Rotary positions, masks and attention: pure functions of arrays."""

import jax
import jax.numpy as jnp


def rotate(x_BxTxNxH: jax.Array, positions_BxT: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding in the half-split layout of Hugging Face's Llama.

    Source: Su et al., "RoFormer" (arXiv 2104.09864).
    """
    H = x_BxTxNxH.shape[-1]
    wide = jnp.promote_types(x_BxTxNxH.dtype, jnp.float32)
    frequencies = theta ** (-jnp.arange(0, H, 2, dtype=wide) / H)
    angles_BxTx1xH = positions_BxT[:, :, None, None].astype(wide) * frequencies
    sin, cos = jnp.sin(angles_BxTx1xH), jnp.cos(angles_BxTx1xH)
    first, second = jnp.split(x_BxTxNxH.astype(wide), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxTxNxH.dtype)


def causal_mask(length: int, segments_BxT: jax.Array | None = None) -> jax.Array:
    """bool[B or 1, T, T]: may the query (axis 1) see the key (axis 2)?

    Args:
      length: T.
      segments_BxT: example number of each token; a token sees only its own example.
    """
    mask = jnp.tril(jnp.ones((length, length), bool))[None]
    if segments_BxT is None:
        return mask
    return mask & (segments_BxT[:, :, None] == segments_BxT[:, None, :])


def attend(q_BxTxNxH: jax.Array, k_BxCxKxH: jax.Array, v_BxCxKxH: jax.Array, mask: jax.Array):
    """Scaled dot-product attention BxTxNxH with grouped heads, softmax in float32 or wider.

    Pure JAX, so it has a forward mode: fused kernels (splash, cuDNN) have none, and influence
    scores are forward-mode derivatives.
    """
    B, T, N, H = q_BxTxNxH.shape
    K = k_BxCxKxH.shape[2]
    q_BxTxKxGxH = q_BxTxNxH.reshape(B, T, K, N // K, H) * H**-0.5
    scores = jnp.einsum("btkgh,bckh->bkgtc", q_BxTxKxGxH, k_BxCxKxH)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxCxKxH.dtype)
    return jnp.einsum("bkgtc,bckh->btkgh", weights, v_BxCxKxH).reshape(B, T, N, H)
