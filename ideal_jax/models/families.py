"""Hugging Face's families: what their configs mean, and what they call our parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ideal_jax.config import nearest
from ideal_jax.errors import UserError
from ideal_jax.models.config import DecoderConfig
from ideal_jax.models.config_keys import read_rope

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Names of a layer's parameters behind "model.layers.<number>.".
_LAYER = {
    "attention/q": "self_attn.q_proj",
    "attention/k": "self_attn.k_proj",
    "attention/v": "self_attn.v_proj",
    "attention/o": "self_attn.o_proj",
    "attention/q_norm": "self_attn.q_norm",
    "attention/k_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
_SANDWICH = {
    **_LAYER,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
# Names of the parameters outside of the layers.
OUTSIDE = {
    "embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class Family:
    """One ``model_type``.

    Attributes:
      layer: names of a layer's parameters (without ``.weight``) by ours (without ``/kernel``).
      fields: DecoderConfig's fields beyond the common ones, from the config and its file's name.
      reads: the keys that ``fields`` looks at.
    """

    layer: Mapping[str, str]
    fields: Callable[[Any, str], dict[str, Any]]
    reads: str


def decoder_config(config: "PreTrainedConfig", where: str, dtype: str) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Args:
      config: from ``transformers``.
      where: its file, for error messages.
      dtype: of parameters and activations.

    Raises:
      UserError: an unknown ``model_type``, or a value that we do not compute; names it.
    """
    family = find_family(config.model_type, where)
    fields = {**_common(config, where), **family.fields(config, where)}
    if fields["activation"] not in _ACTIVATIONS:
        raise UserError(
            f"{where}: activation {fields['activation']!r} is not supported; there are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    fields["activation"] = _ACTIVATIONS[fields["activation"]]
    return DecoderConfig(**fields, dtype=dtype, param_dtype=dtype)


def find_family(model_type: str, where: str) -> Family:
    """The family of this name; an unknown one is a UserError."""
    if model_type not in FAMILIES:
        raise UserError(
            f"{where}: model_type {model_type!r} is not supported{nearest(model_type, FAMILIES)}; "
            f"there are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def tensor_name(family: Family, path: str, layer: int | None) -> str:
    """Hugging Face's name of our parameter ``path``; ``layer`` is its number within ``layers/``."""
    if layer is None:
        return OUTSIDE[path]
    module, _, kind = path.removeprefix("layers/").rpartition("/")
    kind = {"kernel": "weight", "scale": "weight", "bias": "bias"}[kind]
    return f"model.layers.{layer}.{family.layer[module]}.{kind}"


def is_transposed(path: str) -> bool:
    """Whether Hugging Face stores the matrix as O×I where we have I×O."""
    return path.endswith("/kernel")


def _common(config: Any, where: str) -> dict[str, Any]:
    config.standardize_rope_params()  # as transformers does once more when it builds the model
    rope = dict(config.rope_parameters)
    local: Mapping[str, Any] = {}
    if config.model_type == "gemma3_text":  # has a rope for each kind of layer
        local, rope = rope["sliding_attention"], rope["full_attention"]
        read_rope(config, local, where, ("default",))
        scaling = read_rope(config, rope, where, ("default", "linear", "llama3"))
    else:
        scaling = read_rope(config, rope, where)
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        "d_ff": config.intermediate_size,
        "norm_eps": config.rms_norm_eps,
        "tie_embeddings": config.tie_word_embeddings,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        "local_rope_theta": local.get("rope_theta", 0.0),
    }


def _layer_windows(config: Any, where: str) -> tuple[int, ...]:
    """Windows by ``layer_types``; () if no layer has one."""
    for kind in config.layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"{where}: {kind!r} of layer_types is not supported")
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    if any(sliding) and not config.sliding_window:
        raise UserError(
            f"{where}: layer_types has layers with a window, but sliding_window is "
            f"{config.sliding_window} (use_sliding_window may turn it off)"
        )
    return tuple(config.sliding_window if s else 0 for s in sliding) if any(sliding) else ()


def _llama(config: Any, where: str) -> dict[str, Any]:
    return {
        "activation": config.hidden_act,
        "qkv_bias": config.attention_bias,
        "o_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def _mistral(config: Any, where: str) -> dict[str, Any]:
    window = config.sliding_window
    return {
        "activation": config.hidden_act,
        "windows": (window,) * config.num_hidden_layers if window else (),
    }


def _qwen2(config: Any, where: str) -> dict[str, Any]:
    return {
        "activation": config.hidden_act,
        "qkv_bias": True,
        "windows": _layer_windows(config, where),
    }


def _qwen3(config: Any, where: str) -> dict[str, Any]:
    return {
        "activation": config.hidden_act,
        "qkv_bias": config.attention_bias,
        "o_bias": config.attention_bias,
        "qk_norm": True,
        "windows": _layer_windows(config, where),
    }


def _gemma(config: Any, where: str) -> dict[str, Any]:
    older = getattr(config, "hidden_act", config.hidden_activation)
    if older != config.hidden_activation:
        raise UserError(
            f"{where}: hidden_act={older!r} is not hidden_activation={config.hidden_activation!r}, "
            "which is what transformers computes; make them agree"
        )
    return {
        "activation": config.hidden_activation,
        "qkv_bias": config.attention_bias,
        "o_bias": config.attention_bias,
        "windows": _layer_windows(config, where),
        "attention_scale": config.query_pre_attn_scalar**-0.5,
        "logit_softcap": config.final_logit_softcapping or 0.0,
        "unit_offset_norm": True,
        "post_norms": True,
        "scale_embedding": True,
    }


def _gemma2(config: Any, where: str) -> dict[str, Any]:
    return {**_gemma(config, where), "attention_softcap": config.attn_logit_softcapping or 0.0}


def _gemma3(config: Any, where: str) -> dict[str, Any]:
    return {**_gemma(config, where), "qk_norm": True}


_WINDOWS = "layer_types sliding_window"
_GEMMA = f"""{_WINDOWS} hidden_act hidden_activation attention_bias query_pre_attn_scalar
    final_logit_softcapping"""

FAMILIES: dict[str, Family] = {
    "llama": Family(_LAYER, _llama, "hidden_act attention_bias mlp_bias"),
    "mistral": Family(_LAYER, _mistral, "hidden_act sliding_window"),
    "qwen2": Family(_LAYER, _qwen2, f"hidden_act {_WINDOWS}"),
    "qwen3": Family(_LAYER, _qwen3, f"hidden_act attention_bias {_WINDOWS}"),
    "gemma2": Family(_SANDWICH, _gemma2, f"{_GEMMA} attn_logit_softcapping"),
    "gemma3_text": Family(
        _SANDWICH, _gemma3, f"{_GEMMA} sliding_window_pattern rope_local_base_freq"
    ),
}
