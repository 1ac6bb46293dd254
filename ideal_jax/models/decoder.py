"""One decoder-only transformer of the Llama shape: RMSNorm, GQA, RoPE, SwiGLU.

The layers are stacked (``nn.scan``): every parameter of a layer has a leading axis L. Every dense
layer is a plain matrix I×O that can ``sow`` its input and ``perturb`` its output, so curvature
sees all layers while training, which asks for neither collection, pays nothing.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ideal_jax.models import attention
from ideal_jax.sharding import constrain

Cache = dict[str, jax.Array]  # {"k", "v"}: LxBxCxKxH, slot c holds the token at position c


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Attributes:
      vocab_size: V, tokens that can be predicted.
      d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff: D, L, N, K, H, F.
      rope_theta: base of the rotary frequencies.
      norm_eps: ε of RMSNorm.
      tie_embeddings: the output matrix is the transposed embedding.
      dtype: of activations.  param_dtype: of parameters.
      remat: recompute each layer in the backward pass instead of storing it.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False

    @property
    def padded_vocab(self) -> int:
        """V rounded up, so that the vocabulary can be split over devices."""
        return -(-self.vocab_size // 64) * 64


def _parameter(
    module: nn.Module,
    name: str,
    init: Any,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    cfg: DecoderConfig,
) -> jax.Array:
    """A parameter with logical axes; inside ``apply`` it is a plain array."""
    boxed: Any = nn.with_logical_partitioning(init, axes)
    return module.param(name, boxed, shape, jnp.dtype(cfg.param_dtype))


class Dense(nn.Module):
    """``x @ kernel`` with the two taps that curvature needs."""

    features: int
    axes: tuple[str, str]
    cfg: DecoderConfig
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., I] to [..., O]."""
        init = nn.initializers.variance_scaling(self.init_scale, "fan_in", "normal")
        shape = (x.shape[-1], self.features)
        kernel_IxO = _parameter(self, "kernel", init, shape, self.axes, self.cfg)
        self.sow("taps", "input", x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        y = x @ kernel_IxO.astype(x.dtype)
        # ``perturb`` raises in layers that are not tapped while others are.
        if self.is_initializing() or self.has_variable("perturbations", "output"):
            y = self.perturb("output", y, collection="perturbations")
        return y


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32 or wider."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        ones = nn.initializers.ones
        scale = _parameter(self, "scale", ones, x.shape[-1:], (None,), self.cfg)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        rms = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.cfg.norm_eps)
        return (wide * rms * scale.astype(wide.dtype)).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, cache: Cache | None, positions_BxT: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the layer's output BxTxD and its new cache (BxCxKxH without the axis L)."""
        c = self.cfg
        B, T, _ = x_BxTxD.shape
        q = Dense(c.n_heads * c.head_dim, ("embed", "heads"), c, name="q")(x_BxTxD)
        k = Dense(c.n_kv_heads * c.head_dim, ("embed", "kv_heads"), c, name="k")(x_BxTxD)
        v = Dense(c.n_kv_heads * c.head_dim, ("embed", "kv_heads"), c, name="v")(x_BxTxD)
        q_BxTxNxH = q.reshape(B, T, c.n_heads, c.head_dim)
        k_BxTxKxH = k.reshape(B, T, c.n_kv_heads, c.head_dim)
        v_BxTxKxH = v.reshape(B, T, c.n_kv_heads, c.head_dim)
        q_BxTxNxH = attention.rotate(q_BxTxNxH, positions_BxT, c.rope_theta)
        k_BxTxKxH = attention.rotate(k_BxTxKxH, positions_BxT, c.rope_theta)
        if cache is not None:
            rows = jnp.arange(B)[:, None]
            k_BxTxKxH = cache["k"].at[rows, positions_BxT].set(k_BxTxKxH)
            v_BxTxKxH = cache["v"].at[rows, positions_BxT].set(v_BxTxKxH)
            cache = {"k": k_BxTxKxH, "v": v_BxTxKxH}
        y_BxTxNxH = attention.attend(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, mask)
        y = y_BxTxNxH.reshape(B, T, c.n_heads * c.head_dim)
        o = Dense(c.d_model, ("heads", "embed"), c, init_scale=0.5 / c.n_layers, name="o")
        return o(y), cache


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Maps BxTxD to BxTxD."""
        c = self.cfg
        gate_BxTxF = Dense(c.d_ff, ("embed", "mlp"), c, name="gate")(x_BxTxD)
        up_BxTxF = Dense(c.d_ff, ("embed", "mlp"), c, name="up")(x_BxTxD)
        down = Dense(c.d_model, ("mlp", "embed"), c, init_scale=0.5 / c.n_layers, name="down")
        return down(nn.silu(gate_BxTxF) * up_BxTxF)


class Block(nn.Module):
    """One layer, in the (carry, scanned) form of ``nn.scan``."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, cache: Cache | None, positions_BxT: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, Cache | None]:
        """Adds attention and MLP to the residual stream; returns (x, the layer's cache)."""
        y, cache = Attention(self.cfg, name="attention")(
            RMSNorm(self.cfg, name="attention_norm")(x_BxTxD), cache, positions_BxT, mask
        )
        x_BxTxD = constrain(x_BxTxD + y, "batch", None, None)
        y = MLP(self.cfg, name="mlp")(RMSNorm(self.cfg, name="mlp_norm")(x_BxTxD))
        return constrain(x_BxTxD + y, "batch", None, None), cache


class Decoder(nn.Module):
    """A causal language model.

    ``model.apply({"params": params}, tokens_BxT) -> logits_BxTxV`` in float32 (float64 when the
    parameters are).
    """

    cfg: DecoderConfig

    def setup(self) -> None:
        """Embedding, L stacked blocks, final norm, output matrix."""
        c = self.cfg
        init, shape = nn.initializers.normal(c.d_model**-0.5), (c.padded_vocab, c.d_model)
        self.embedding = _parameter(self, "embedding", init, shape, ("vocab", "embed"), c)
        self.layers = nn.scan(
            nn.remat(Block, prevent_cse=False) if c.remat else Block,
            variable_axes={"params": 0, "taps": 0, "perturbations": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.n_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        self.final_norm = RMSNorm(c)
        if not c.tie_embeddings:
            self.head = Dense(c.padded_vocab, ("embed", "vocab"), c)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array | None = None,
        segments_BxT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits BxTxV of the next token.

        Args:
          tokens_BxT: token ids.
          positions_BxT: position of each token in its example; 0, 1, … by default.
          segments_BxT: number of the example each token belongs to; tokens attend only within
            their own. One example a row by default.
        """
        return self._logits(self.hidden(tokens_BxT, positions_BxT, segments_BxT))

    def hidden(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array | None = None,
        segments_BxT: jax.Array | None = None,
    ) -> jax.Array:
        """The normalised last hidden state BxTxD; times the output matrix it gives the logits."""
        if positions_BxT is None:
            positions_BxT = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
        mask_BxTxT = attention.causal_mask(tokens_BxT.shape[1], segments_BxT)
        x_BxTxD, _ = self.layers(self._embed(tokens_BxT), None, positions_BxT, mask_BxTxT)
        return self.final_norm(x_BxTxD)

    def decode(
        self, tokens_BxT: jax.Array, positions_BxT: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Logits BxTxV of tokens appended to a cache (``empty_cache``) of earlier ones.

        A token sees the cache slots up to its own position, so padding to the right of a prompt
        is harmless: later tokens overwrite it before anything can attend to it.
        """
        slots = jnp.arange(cache["k"].shape[2])
        mask_BxTxC = slots[None, None, :] <= positions_BxT[:, :, None]
        new: Any
        x_BxTxD, new = self.layers(self._embed(tokens_BxT), cache, positions_BxT, mask_BxTxC)
        return self._logits(self.final_norm(x_BxTxD)), new

    def _embed(self, tokens_BxT: jax.Array) -> jax.Array:
        x_BxTxD = self.embedding[tokens_BxT].astype(jnp.dtype(self.cfg.dtype))
        return constrain(x_BxTxD, "batch", None, None)

    def _logits(self, h_BxTxD: jax.Array) -> jax.Array:
        if self.cfg.tie_embeddings:
            logits = h_BxTxD @ self.embedding.T.astype(h_BxTxD.dtype)
        else:
            logits = self.head(h_BxTxD)
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return wide[..., : self.cfg.vocab_size]


def output_matrix(cfg: DecoderConfig, params: Any) -> jax.Array:
    """The matrix DxV (padded vocabulary) that turns ``Decoder.hidden`` into logits."""
    return params["embedding"].T if cfg.tie_embeddings else params["head"]["kernel"]


def empty_cache(cfg: DecoderConfig, batch: int, slots: int) -> Cache:
    """A key/value cache LxBxCxKxH for ``Decoder.decode``."""
    shape = (cfg.n_layers, batch, slots, cfg.n_kv_heads, cfg.head_dim)
    return {name: jnp.zeros(shape, jnp.dtype(cfg.dtype)) for name in ("k", "v")}
