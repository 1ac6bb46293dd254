"""Splash attention: JAX's flash kernel for TPU, on the shards of a mesh."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from ideal_jax import sharding

SAVED = "attention"  # the name of what a policy of ``jax.checkpoint`` may keep
_LANES = 128  # a block of keys is a multiple of this


def splash(
    q_BxTxNxH: jax.Array,
    k_BxTxKxH: jax.Array,
    v_BxTxKxH: jax.Array,
    segments_BxT: jax.Array,
    window: jax.Array | None = None,
    *,
    windows: tuple[int, ...] = (),
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention BxTxNxH within segments, without ever holding T×T scores.

    Rows and heads are split as the mesh splits them, and every device runs the kernel on its own.
    It has no forward mode. Source: Dao, "FlashAttention-2" (arXiv 2307.08691), over the blocks
    that the mask leaves.

    Args:
      segments_BxT: a token sees those of its own segment that stand no later in the row.
      window: int32[], how far back this layer reaches; one of ``windows``.
      windows: of all layers, 0: no limit. The kernel's masks are static, so layers of two kinds
        switch between two kernels.
      scale, softcap: as in ``attention.attend``.
      interpret: run on any platform, slowly.
    """
    T = q_BxTxNxH.shape[1]
    pad = -T % _LANES  # short rows of evaluation; training rows are multiples

    def widen(x: jax.Array, value: int = 0) -> jax.Array:
        widths = ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=value)

    length = T + pad
    reaches = sorted({min(w or length, length) for w in windows} or {length})
    branch = 0 if window is None else jnp.searchsorted(jnp.asarray(reaches), window)

    def local(q, k, v, segments, branch):
        kernels = [
            functools.partial(_kernel, reach=reach, softcap=softcap, interpret=interpret)
            for reach in reaches
        ]
        heads_first = [x.swapaxes(1, 2) for x in (q, k, v)]
        y = jax.lax.switch(branch, kernels, *heads_first, segments)
        return y.swapaxes(1, 2)

    if not jax.sharding.get_abstract_mesh().empty:
        split = sharding.spec("batch", None, "heads", None)
        specs = (split, split, split, sharding.spec("batch", None), sharding.spec())
        # The kernel's outputs do not say over which axes they vary.
        local = jax.shard_map(local, in_specs=specs, out_specs=split, check_vma=False)
    q = widen(q_BxTxNxH * jnp.asarray(scale, q_BxTxNxH.dtype))
    segments = widen(segments_BxT.astype(jnp.int32), -1)
    y = local(q, widen(k_BxTxKxH), widen(v_BxTxKxH), segments, jnp.asarray(branch))
    return y[:, :T]


def _kernel(
    q_BxNxTxH: jax.Array,
    k_BxKxTxH: jax.Array,
    v_BxKxTxH: jax.Array,
    segments_BxT: jax.Array,
    *,
    reach: int,
    softcap: float,
    interpret: bool,
) -> jax.Array:
    _, N, T, _ = q_BxNxTxH.shape
    mask: splash_attention.Mask = splash_attention.CausalMask((T, T))
    if reach < T:
        mask = splash_attention.LocalMask((T, T), window_size=(reach - 1, 0), offset=0)
    block = next(size for size in (1024, 512, 256, 128) if T % size == 0)
    kernel = splash_attention.make_splash_mha_single_device(
        mask=splash_attention.MultiHeadMask([mask] * N),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=min(block, 512),
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=min(block, 512),
            use_fused_bwd_kernel=True,
        ),
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )

    def one(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        ids = splash_attention.SegmentIds(q=segments, kv=segments)
        y: jax.Array = kernel(q, k, v, segment_ids=ids)
        return y

    return jax.vmap(one)(q_BxNxTxH, k_BxKxTxH, v_BxKxTxH, segments_BxT)
