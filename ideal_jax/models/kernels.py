"""Attention by platform: which kernel runs where, all of them under one signature.

"xla" is the reference. "blocked" is the same in pieces, for rows of many tokens. The fused kernels,
"splash" on TPU and "cudnn" on GPU, never hold the scores in memory, but have no forward mode.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.ad_checkpoint import checkpoint_name

from ideal_jax.errors import UserError
from ideal_jax.models import attention
from ideal_jax.models.attention import Places
from ideal_jax.models.config import DecoderConfig
from ideal_jax.models.splash import SAVED, splash

KERNELS = ("xla", "blocked", "splash", "cudnn")


def attend(
    cfg: DecoderConfig,
    kernel: str,
    q_BxTxNxH: jax.Array,
    k_BxCxKxH: jax.Array,
    v_BxCxKxH: jax.Array,
    queries: Places,
    keys: Places,
    window: jax.Array | None,
) -> jax.Array:
    """Attention BxTxNxH of a layer by one of ``KERNELS``.

    Args:
      cfg: scale, soft-cap and windows.
      kernel: all but "xla" want queries and keys to be the same tokens, segments in one piece.
      queries, keys: where the T and C tokens stand.
      window: int32[], how far back this layer reaches.
    """
    scale, softcap = cfg.attention_scale or cfg.head_dim**-0.5, cfg.attention_softcap
    qkv = (q_BxTxNxH, k_BxCxKxH, v_BxCxKxH)
    if kernel == "splash":
        return splash(
            *qkv, queries.segments, window, windows=cfg.windows, scale=scale, softcap=softcap
        )
    if kernel == "cudnn" and cfg.max_segments and window is None:
        return fused_by_segment(*qkv, queries.segments, cfg.max_segments, scale=scale)
    if kernel == "cudnn":
        return fused_on_gpu(*qkv, queries, window, scale=scale)
    if kernel == "blocked":
        y = attention.attend_blocked(*qkv, queries, window, scale=scale, softcap=softcap)
    else:
        mask = attention.visible(queries, keys, window)
        y = attention.attend(*qkv, mask, scale=scale, softcap=softcap)
    return checkpoint_name(y, SAVED)


def save_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    """A policy of ``jax.checkpoint``: what the backward pass of attention needs is kept.

    Splash names its results and their normalisers, as the others name theirs; cuDNN does not.
    """
    named: bool = jax.checkpoint_policies.save_only_these_names(SAVED)(primitive, *_, **params)
    return named or primitive.name == "dot_product_attention_fwd_wrapper"


def fused_on_gpu(
    q_BxTxNxH: jax.Array,
    k_BxTxKxH: jax.Array,
    v_BxTxKxH: jax.Array,
    places: Places,
    window: jax.Array | None,
    *,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """cuDNN's flash attention; segments and windows as one mask BxTxT for all heads.

    The mask is the only thing of size T² (T = 4096: 32 MiB a row in bfloat16). Being causal, the
    kernel skips what lies above the diagonal.
    """
    return jax.nn.dot_product_attention(
        q_BxTxNxH,
        k_BxTxKxH,
        v_BxTxKxH,
        mask=attention.visible(places, places, window)[:, None],
        scale=scale,
        is_causal=True,
        implementation=implementation,
    )


def fused_by_segment(
    q_BxTxNxH: jax.Array,
    k_BxTxKxH: jax.Array,
    v_BxTxKxH: jax.Array,
    segments_BxT: jax.Array,
    max_segments: int,
    *,
    scale: float,
) -> jax.Array:
    """cuDNN's flash attention within each segment; on one H200 3 to 5 times as fast as by a mask.

    For compute capability 9 and later. ``jax.nn`` does not offer it.
    """
    lengths, starts = segment_bounds(segments_BxT, max_segments)
    y: jax.Array = cudnn.dot_product_attention(
        q_BxTxNxH,
        k_BxTxKxH,
        v_BxTxKxH,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=starts,
        kv_offsets=starts,
        scale=scale,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )
    return y


def segment_bounds(segments_BxT: jax.Array, max_segments: int) -> tuple[jax.Array, jax.Array]:
    """Tokens int32[B, S] of a row's segments, and int32[B, S+1] where each starts; −1: no more.

    Args:
      segments_BxT: the same number for the tokens of a segment, which lie side by side; padding
        is one more.
      max_segments: S, at least as many as any row has.
    """
    new_BxT = jnp.diff(segments_BxT, axis=1, prepend=segments_BxT[:, :1] - 1) != 0
    number_BxT = jnp.cumsum(new_BxT, axis=1) - 1
    lengths_BxS = jnp.sum(
        number_BxT[..., None] == jnp.arange(max_segments), axis=1, dtype=jnp.int32
    )
    starts_BxS = jnp.cumsum(lengths_BxS, axis=1, dtype=jnp.int32) - lengths_BxS
    there = lengths_BxS > 0
    starts_BxS = jnp.where(there, starts_BxS, -1)
    return jnp.where(there, lengths_BxS, -1), jnp.pad(
        starts_BxS, ((0, 0), (0, 1)), constant_values=-1
    )


def choose_attention(
    asked: str, cfg: DecoderConfig, *, platform: str, row_length: int, tensor: int = 1
) -> str:
    """The kernel that ``model.attention`` means.

    Args:
      asked: one of ``KERNELS``, or "auto": the platform's fused kernel where it can, else "xla",
        or "blocked" for rows of several blocks.
      cfg: of the decoder.
      platform: "tpu", "gpu" or "cpu".
      row_length: T, tokens.
      tensor: ways the heads are split.

    Raises:
      UserError: no such kernel, or one that cannot run this model here.
    """
    if asked not in (*KERNELS, "auto"):
        raise UserError(f"model.attention={asked!r} is not one of auto, {', '.join(KERNELS)}")
    missing = {
        "splash": _splash_lacks(cfg, platform, row_length, tensor),
        "cudnn": _cudnn_lacks(cfg, platform),
    }
    if asked == "auto":
        fused = [kernel for kernel, lack in missing.items() if not lack]
        plain = "blocked" if row_length > attention.BLOCK else "xla"
        return fused[0] if fused else plain
    if missing.get(asked):
        raise UserError(f"model.attention={asked} {missing[asked]}; use model.attention=auto")
    return asked


def forward_mode(cfg: DecoderConfig) -> DecoderConfig:
    """The same decoder with attention that has a jvp, whatever the length of its rows."""
    return dataclasses.replace(cfg, attention="blocked")


def _splash_lacks(cfg: DecoderConfig, platform: str, row_length: int, tensor: int) -> str:
    if platform != "tpu":
        return f"needs a TPU, not {platform}"
    if row_length % 128:
        return f"needs a data.row_length that is a multiple of 128, not {row_length}"
    if cfg.n_kv_heads % tensor:
        return f"needs key heads ({cfg.n_kv_heads}) that mesh.tensor={tensor} divides"
    if jnp.dtype(cfg.dtype).itemsize > 4:
        return f"computes in float32 at most, not model.dtype={cfg.dtype}"
    return ""


def _cudnn_lacks(cfg: DecoderConfig, platform: str) -> str:
    if platform != "gpu":
        return f"needs a GPU, not {platform}"
    if jnp.dtype(cfg.dtype).itemsize != 2:
        return f"needs model.dtype=bfloat16, not {cfg.dtype}"
    if cfg.attention_softcap:
        return "has no soft-cap of scores, which this model needs"
    if cfg.head_dim % 8 or cfg.head_dim > 256:
        return f"needs heads as wide as a multiple of 8 up to 256, not {cfg.head_dim}"
    return ""
