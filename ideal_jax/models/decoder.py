"""One decoder-only transformer: RMSNorm, GQA, RoPE, gated MLP, and what the families add to it.

The layers are stacked (``nn.scan``): a layer's parameters have a leading axis L. For curvature,
every dense layer is a plain matrix I×O that passes what it maps through a ``Tap``, if it is given
one; for scores, every parameter can ``read`` derivatives along directions. Training gives neither
collection and pays nothing.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from ideal_jax.models import attention, kernels, rope
from ideal_jax.models.attention import Places
from ideal_jax.models.config import DecoderConfig
from ideal_jax.models.readings import DIRECTIONS, PLACES, STEPS, Directions, read
from ideal_jax.models.rope import Rotation
from ideal_jax.sharding import constrain

Cache = dict[str, jax.Array]  # {"k", "v"}: LxBxCxKxH, slot c holds the token at position c
Carry = tuple[jax.Array, Cache | None]  # from layer to layer: x_BxTxD and the cache of all layers
Kind = dict[str, jax.Array]  # what differs between layers: {"layer": L, "window": L, "local": L}
TAPS = "taps"  # collection of the ``Tap``s of dense layers, each called "tap" at its layer's path


class Where(NamedTuple):
    """Where the tokens stand, the same for all layers.

    Attributes:
      queries: the tokens.
      keys: those in the cache that they may attend to; None: one another.
      rotation: of the queries. Computed here: inside a layer XLA takes sines for every head.
      local_rotation: that of layers with a rope of their own, if there are any.
    """

    queries: Places
    keys: Places | None
    rotation: Rotation
    local_rotation: Rotation | None


_ACTIVATIONS: dict[str, Any] = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}

_policies = jax.checkpoint_policies
# What the backward pass finds of a block's values instead of computing them again.
REMAT: dict[str, Any] = {
    "none": _policies.everything_saveable,
    "full": _policies.nothing_saveable,  # but for the block's input
    "dots": _policies.save_from_both_policies(  # results of matrix products and of attention
        _policies.dots_with_no_batch_dims_saveable, kernels.save_attention
    ),
    "offload": _policies.save_and_offload_only_these_names(  # the block's input, on the host
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block_input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


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


def _residual_init(cfg: DecoderConfig) -> Any:
    """For the matrices that write to the residual stream: smaller, the more of them there are."""
    return nn.initializers.variance_scaling(0.5 / cfg.n_layers, "fan_in", "normal")


def times(kernel_IxO: jax.Array, x: jax.Array) -> jax.Array:
    """``x`` [..., I] times a matrix, as plain matrices.

    The kernel's gradient then contracts one axis, which XLA:CPU computes without transposing
    activations first (a gated MLP takes 0.7 of the time).
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel_IxO
    return y.reshape(*x.shape[:-1], kernel_IxO.shape[1])


class Dense(nn.Module):
    """``x @ kernel`` with a tap for curvature and, where asked, an adapter."""

    features: int
    axes: tuple[str | None, str | None]
    cfg: DecoderConfig
    bias: bool = False
    init: Any = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., I] to [..., O]."""
        shape = (x.shape[-1], self.features)
        kernel_IxO = _parameter(self, "kernel", self.init, shape, self.axes, self.cfg)
        y = times(kernel_IxO.astype(x.dtype), x)
        y = read(self, "kernel", y, times, x)
        if self.bias:
            zeros = nn.initializers.zeros
            bias_O = _parameter(self, "bias", zeros, shape[1:], self.axes[1:], self.cfg)
            y = y + bias_O.astype(x.dtype)
            y = read(self, "bias", y, lambda b, x: jnp.broadcast_to(b, (*x.shape[:-1], b.size)), x)
        if self.has_variable(TAPS, "tap"):
            y = self.get_variable(TAPS, "tap")(x, y)
        lora = self.cfg.lora
        if lora is not None and lora.covers("/".join(self.path)):
            y = y + self._low_rank(x) * (lora.alpha / lora.rank)
        return y

    def _low_rank(self, x: jax.Array) -> jax.Array:
        cfg, lora = dataclasses.replace(self.cfg, lora=None), self.cfg.lora
        assert lora is not None
        if lora.dropout:
            x = nn.Dropout(lora.dropout, deterministic=not self.has_rng("dropout"))(x)
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = Dense(lora.rank, (self.axes[0], None), cfg, init=uniform, name="lora_a")
        zeros = nn.initializers.zeros
        b = Dense(self.features, (None, self.axes[1]), cfg, init=zeros, name="lora_b")
        return b(a(x))


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32 or wider."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        offset = 1.0 if self.cfg.unit_offset_norm else 0.0
        init = nn.initializers.constant(1.0 - offset)
        scale = _parameter(self, "scale", init, x.shape[-1:], (None,), self.cfg)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        rms = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.cfg.norm_eps)
        normal = wide * rms
        y = (normal * (scale.astype(wide.dtype) + offset)).astype(x.dtype)
        return read(self, "scale", y, lambda scale, x: (x * scale).astype(y.dtype), normal)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, cache: Cache | None, kind: Kind, where: Where
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the layer's output BxTxD and the cache with its keys and values."""
        c = self.cfg
        B, T, _ = x_BxTxD.shape
        q = Dense(c.n_heads * c.head_dim, ("embed", "heads"), c, c.qkv_bias, name="q")(x_BxTxD)
        k = Dense(c.n_kv_heads * c.head_dim, ("embed", "kv_heads"), c, c.qkv_bias, name="k")(
            x_BxTxD
        )
        v = Dense(c.n_kv_heads * c.head_dim, ("embed", "kv_heads"), c, c.qkv_bias, name="v")(
            x_BxTxD
        )
        q_BxTxNxH = q.reshape(B, T, c.n_heads, c.head_dim)
        k_BxTxKxH = k.reshape(B, T, c.n_kv_heads, c.head_dim)
        v_BxTxKxH = v.reshape(B, T, c.n_kv_heads, c.head_dim)
        if c.qk_norm:
            q_BxTxNxH = RMSNorm(c, name="q_norm")(q_BxTxNxH)
            k_BxTxKxH = RMSNorm(c, name="k_norm")(k_BxTxKxH)
        rotation = where.rotation
        if where.local_rotation is not None:
            rotation = jax.tree.map(
                functools.partial(jnp.where, kind["local"]), where.local_rotation, rotation
            )
        q_BxTxNxH = rope.rotate(q_BxTxNxH, rotation)
        k_BxTxKxH = rope.rotate(k_BxTxKxH, rotation)
        kernel, keys = c.attention, where.queries
        if cache is not None:
            cache = _written(cache, kind["layer"], k_BxTxKxH, v_BxTxKxH, where)
        if where.keys is not None:
            assert cache is not None
            kernel, keys = "xla", where.keys
            k_BxTxKxH, v_BxTxKxH = cache["k"][kind["layer"]], cache["v"][kind["layer"]]
        # Initialising, on one short row, is no work for a kernel that splits rows over a mesh.
        kernel = "xla" if self.is_initializing() else kernel
        y_BxTxNxH = kernels.attend(
            c, kernel, q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, where.queries, keys, kind.get("window")
        )
        y = y_BxTxNxH.reshape(B, T, c.n_heads * c.head_dim)
        o = Dense(c.d_model, ("heads", "embed"), c, c.o_bias, init=_residual_init(c), name="o")
        return o(y), cache


class MLP(nn.Module):
    """A gated MLP: down(activation(gate(x)) * up(x))."""

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Maps BxTxD to BxTxD."""
        c = self.cfg
        gate_BxTxF = Dense(c.d_ff, ("embed", "mlp"), c, c.mlp_bias, name="gate")(x_BxTxD)
        up_BxTxF = Dense(c.d_ff, ("embed", "mlp"), c, c.mlp_bias, name="up")(x_BxTxD)
        init = _residual_init(c)
        down = Dense(c.d_model, ("mlp", "embed"), c, c.mlp_bias, init=init, name="down")
        return down(_ACTIVATIONS[c.activation](gate_BxTxF) * up_BxTxF)


def _written(
    cache: Cache, layer: jax.Array, k_BxTxKxH: jax.Array, v_BxTxKxH: jax.Array, where: Where
) -> Cache:
    """The cache with a layer's keys and values, of a prompt or of tokens appended."""
    B, T = k_BxTxKxH.shape[:2]
    new = {"k": k_BxTxKxH, "v": v_BxTxKxH}
    if where.keys is None:
        return {name: cache[name].at[layer, :, :T].set(x) for name, x in new.items()}
    rows, slots = jnp.arange(B)[:, None], where.queries.positions
    return {name: cache[name].at[layer, rows, slots].set(x) for name, x in new.items()}


class Block(nn.Module):
    """One layer, in the (carry, scanned) form of ``nn.scan``.

    The cache is carried, so that a loop over tokens writes their keys and values in place.
    """

    cfg: DecoderConfig

    @nn.compact
    def __call__(self, carry: Carry, kind: Kind, where: Where) -> tuple[Carry, None]:
        """Adds attention and MLP to the residual stream."""
        x_BxTxD, cache = carry
        x_BxTxD = checkpoint_name(x_BxTxD, "block_input")
        y, cache = Attention(self.cfg, name="attention")(
            self._norm("attention_norm", x_BxTxD), cache, kind, where
        )
        x_BxTxD = self._add(x_BxTxD, y, "attention_post_norm")
        y = MLP(self.cfg, name="mlp")(self._norm("mlp_norm", x_BxTxD))
        return (self._add(x_BxTxD, y, "mlp_post_norm"), cache), None

    def _norm(self, name: str, x_BxTxD: jax.Array) -> jax.Array:
        return RMSNorm(self.cfg, name=name)(x_BxTxD)

    def _add(self, x_BxTxD: jax.Array, y_BxTxD: jax.Array, post_norm: str) -> jax.Array:
        if self.cfg.post_norms:
            y_BxTxD = self._norm(post_norm, y_BxTxD)
        return constrain(x_BxTxD + y_BxTxD, "batch", None, None)


class Decoder(nn.Module):
    """A causal language model.

    ``model.apply({"params": params}, tokens_BxT) -> logits_BxTxV`` in float32 (float64 when the
    parameters are).

    Attributes:
      cfg: its shape.
      origin: what Hugging Face's files said of the model it was read from, as JSON (see
        ``huggingface.py``); "" if it was not.
    """

    cfg: DecoderConfig
    origin: str = ""

    def setup(self) -> None:
        """Embedding, L stacked blocks, final norm, output matrix."""
        c = self.cfg
        init, shape = nn.initializers.normal(c.d_model**-0.5), (c.padded_vocab, c.d_model)
        self.embedding = _parameter(self, "embedding", init, shape, ("vocab", "embed"), c)
        policy = REMAT[c.remat]
        self.layers = nn.scan(
            Block if c.remat == "none" else nn.remat(Block, prevent_cse=False, policy=policy),
            variable_axes={"params": 0, TAPS: 0, PLACES: 0},
            variable_broadcast=(STEPS, DIRECTIONS),
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=c.n_layers,
            unroll=c.unroll,
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
        if segments_BxT is None:
            segments_BxT = jnp.zeros_like(tokens_BxT)
        here = Places(positions_BxT, segments_BxT)
        x_BxTxD, _ = self._run(tokens_BxT, None, self._where(here))
        return self.final_norm(x_BxTxD)

    def prefill(
        self, tokens_BxT: jax.Array, lengths_B: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Logits BxV behind prompts that fill an empty cache; row b is ``tokens[b, :lengths[b]]``.

        Padding to the right of a prompt is harmless: the tokens that ``decode`` appends overwrite
        it before anything can attend to it.
        """
        positions_BxT = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
        lengths_BxT = jnp.broadcast_to(lengths_B[:, None], tokens_BxT.shape)
        where = self._where(Places(positions_BxT, jnp.zeros_like(tokens_BxT)), None, lengths_BxT)
        x_BxTxD, new = self._run(tokens_BxT, cache, where)
        last_Bx1xD = jnp.take_along_axis(x_BxTxD, (lengths_B - 1)[:, None, None], axis=1)
        return self._logits(self.final_norm(last_Bx1xD))[:, 0], new

    def decode(
        self, tokens_BxT: jax.Array, positions_BxT: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Logits BxTxV of tokens appended to a cache (``empty_cache``) of earlier ones.

        A token sees the cache slots up to its own position.
        """
        slots = jnp.arange(cache["k"].shape[2])[None]
        queries = Places(positions_BxT, jnp.zeros_like(positions_BxT))
        keys = Places(slots, jnp.zeros_like(slots))
        x_BxTxD, new = self._run(tokens_BxT, cache, self._where(queries, keys))
        return self._logits(self.final_norm(x_BxTxD)), new

    def _run(self, tokens_BxT: jax.Array, cache: Cache | None, where: Where) -> tuple[Any, Any]:
        """Through all layers: x_BxTxD and the cache."""
        kinds: Kind = {"layer": jnp.arange(self.cfg.n_layers)}
        if windows := self.cfg.windows:
            reach = [window or np.iinfo(np.int32).max for window in windows]
            kinds["window"] = jnp.asarray(reach, jnp.int32)
            kinds["local"] = jnp.asarray(windows) > 0
        carry, _ = self.layers((self._embed(tokens_BxT), cache), kinds, where)
        return carry

    def _where(
        self,
        queries: Places,
        keys: Places | None = None,
        lengths_BxT: jax.Array | None = None,
    ) -> Where:
        """``lengths_BxT``: of the queries' examples; by default, up to their last query."""
        c, at = self.cfg, queries.positions
        wide = jnp.promote_types(c.dtype, jnp.float32)
        if lengths_BxT is None and c.rope_scaling and c.rope_scaling.kind == "dynamic":
            lengths_BxT = attention.lengths(queries)
        everywhere = rope.rotation(at, lengths_BxT, c.head_dim, c.rope_theta, c.rope_scaling, wide)
        local = None
        if c.windows and c.local_rope_theta:
            local = rope.rotation(at, None, c.head_dim, c.local_rope_theta, None, wide)
        return Where(queries, keys, everywhere, local)

    def _embed(self, tokens_BxT: jax.Array) -> jax.Array:
        x_BxTxD = self.embedding[tokens_BxT].astype(jnp.dtype(self.cfg.dtype))
        x_BxTxD = read(self, "embedding", x_BxTxD, lambda table, at: table[at], tokens_BxT)
        if self.cfg.scale_embedding:
            x_BxTxD = x_BxTxD * jnp.asarray(self.cfg.d_model**0.5, x_BxTxD.dtype)
        return constrain(x_BxTxD, "batch", None, None)

    def _logits(self, h_BxTxD: jax.Array) -> jax.Array:
        if self.cfg.tie_embeddings:
            logits = h_BxTxD @ self.embedding.T.astype(h_BxTxD.dtype)
        else:
            logits = self.head(h_BxTxD)
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        wide = attention.soft_capped(wide, self.cfg.logit_softcap)
        return wide[..., : self.cfg.vocab_size]


def output_matrix(cfg: DecoderConfig, params: Any) -> jax.Array:
    """The matrix DxV (padded vocabulary) that turns ``Decoder.hidden`` into logits."""
    if not cfg.tie_embeddings:
        return params["head"]["kernel"]
    # XLA:CPU multiplies by a transposed matrix more slowly, a few rows 30 times as slowly.
    copied = jax.lax.optimization_barrier
    return jax.lax.platform_dependent(params["embedding"].T, cpu=copied, default=lambda x: x)


def output_directions(cfg: DecoderConfig, directions: Directions) -> Directions | None:
    """Those of ``output_matrix``, DxV; None if it has none (a frozen one)."""
    if cfg.tie_embeddings:
        tangents = directions.tangents.get("embedding")
        tangents = None if tangents is None else tangents.swapaxes(1, 2)
    else:
        tangents = directions.tangents.get("head", {}).get("kernel")
    return None if tangents is None else directions._replace(tangents=tangents)


def empty_cache(cfg: DecoderConfig, batch: int, slots: int) -> Cache:
    """A key/value cache LxBxCxKxH for ``Decoder.decode``."""
    shape = (cfg.n_layers, batch, slots, cfg.n_kv_heads, cfg.head_dim)
    return {name: jnp.zeros(shape, jnp.dtype(cfg.dtype)) for name in ("k", "v")}
