"""The shape of a decoder: everything that decides what it computes, nothing about where."""

import dataclasses
import re
from typing import Any, NamedTuple

from ideal_jax.models.rope import RopeScaling

_HOW = (
    "attention",
    "max_segments",
    "remat",
    "unroll",
)  # fields that change how fast, not what: no part of a saved model


class LoRA(NamedTuple):
    """Low-rank adapters beside frozen matrices (Hu et al., arXiv 2106.09685).

    rank: r, columns of A and rows of B.  alpha: x·A·B counts alpha/r.
    dropout: share of the inputs of A that is dropped while training.
    target: regular expression searched in the path of a block's dense layer, such as
      ``attention/[qv]$`` or ``mlp/``.
    """

    rank: int
    alpha: float
    dropout: float
    target: str

    def covers(self, path: str) -> bool:
        """Whether the dense layer of this path has an adapter."""
        return path.startswith("layers/") and re.search(self.target, path) is not None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. The defaults are Llama's; Gemma and Qwen differ in what follows them.

    Attributes:
      vocab_size: V, tokens that can be predicted.
      d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff: D, L, N, K, H, F.
      rope_theta: base of the rotary frequencies.
      norm_eps: ε of RMSNorm.
      tie_embeddings: the output matrix is the transposed embedding.
      dtype: of activations.  param_dtype: of parameters.
      attention: the kernel of training and evaluation (``kernels.attend``): "xla", "blocked",
        "splash" or "cudnn".
      max_segments: in a row, padding being one, at most; "cudnn" then leaves out what no token
        sees. 0: any number.
      remat: what the backward pass recomputes (``decoder.REMAT``): "none", "full", "dots" or
        "offload"; with "none" the loss keeps the logits of all positions too.
      unroll: layers that the loop over layers computes in one go; more compile longer.
      rope_scaling: of the frequencies, but not of layers with a rope of their own.
      local_rope_theta: base of the frequencies of layers with a window; 0: as everywhere.
      windows: per layer, how many tokens back attention reaches; 0: all; (): all, in every layer.
      attention_scale: of the scores before the softmax; 0: H^-½.
      attention_softcap, logit_softcap: of attention scores and logits; 0: none.
      qkv_bias, o_bias, mlp_bias: these dense layers add a bias.
      qk_norm: RMSNorm on every head's query and key.
      unit_offset_norm: RMSNorm multiplies by 1 + scale.
      post_norms: RMSNorm also behind attention and MLP, before the residual sum.
      activation: of the gate, "silu" or "gelu_tanh".
      scale_embedding: embeddings are multiplied by √D.
      lora: adapters, if there are any.
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
    attention: str = "xla"
    max_segments: int = 0
    remat: str = "none"
    unroll: int = 1
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float = 0.0
    windows: tuple[int, ...] = ()
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    unit_offset_norm: bool = False
    post_norms: bool = False
    activation: str = "silu"
    scale_embedding: bool = False
    lora: LoRA | None = None

    @property
    def padded_vocab(self) -> int:
        """V rounded up, so that the vocabulary can be split over devices."""
        return -(-self.vocab_size // 64) * 64

    def to_json(self) -> dict[str, Any]:
        """All fields that say what is computed, as ``json`` takes them."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in _HOW}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "DecoderConfig":
        """The inverse of ``to_json``; JSON has turned the tuples into lists."""
        kept = {k: v for k, v in values.items() if k not in _HOW}
        kept["windows"] = tuple(values["windows"])
        for name, kind in (("rope_scaling", RopeScaling), ("lora", LoRA)):
            kept[name] = kind(*values[name]) if values[name] else None
        return cls(**kept)
