"""Attention by platform: which kernel runs where, all of them under one signature.

"xla" is the reference. "blocked" is the same in pieces, for rows of many tokens. The fused kernels,
"splash" on TPU and "cudnn" on GPU, never hold the scores in memory, but have no forward mode.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
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
