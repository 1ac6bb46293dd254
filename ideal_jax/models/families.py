"""Hugging Face's families: what their configs mean, and what they call our parameters.

Everything a config says is either understood here, or without effect on what the model computes,
or at the value that we compute; anything else is refused by name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ideal_jax.config import nearest
from ideal_jax.errors import UserError
from ideal_jax.models.attention import RopeScaling
from ideal_jax.models.config import DecoderConfig

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
_OUTSIDE = {
    "embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys that say nothing about what the model computes from tokens.
_NEUTRAL = _keys(
    """_name_or_path architectures auto_map bos_token_id dtype eos_token_id id2label
    initializer_range label2id max_position_embeddings max_window_layers model_type
    output_attentions output_hidden_states pad_token_id pretraining_tp problem_type return_dict
    torch_dtype transformers_version use_cache use_sliding_window"""
)
# Keys that every family's config has and `_common` reads.
_COMMON = _keys(
    """head_dim hidden_size intermediate_size num_attention_heads num_hidden_layers
    num_key_value_heads rms_norm_eps rope_parameters tie_word_embeddings vocab_size"""
)
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class Family:
    """One ``model_type``.

    Attributes:
      layer: names of a layer's parameters (without ``.weight``) by ours (without ``/kernel``).
      fields: DecoderConfig's fields beyond the common ones, from the config.
      reads: the keys that ``fields`` looks at.
    """

    layer: Mapping[str, str]
    fields: Callable[[Any], dict[str, Any]]
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
    _refuse_unknown(config, family, where)
    fields = {**_common(config, where), **family.fields(config)}
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
        return _OUTSIDE[path]
    module, _, kind = path.removeprefix("layers/").rpartition("/")
    kind = {"kernel": "weight", "scale": "weight", "bias": "bias"}[kind]
    return f"model.layers.{layer}.{family.layer[module]}.{kind}"


def is_transposed(path: str) -> bool:
    """Whether Hugging Face stores the matrix as O×I where we have I×O."""
    return path.endswith("/kernel")


def _refuse_unknown(config: "PreTrainedConfig", family: Family, where: str) -> None:
    defaults = type(config)().to_dict()
    understood = _NEUTRAL | _COMMON | _keys(family.reads)
    for key, value in config.to_dict().items():
        if key in understood or value == defaults.get(key) or not (value or key in defaults):
            continue
        only = f"only {defaults[key]!r} is" if key in defaults else "remove the key if it is unused"
        raise UserError(
            f"{where}: {key}={value!r} is not supported for {config.model_type}; {only}"
        )


def _common(config: Any, where: str) -> dict[str, Any]:
    rope = dict(config.rope_parameters)
    local: Mapping[str, Any] = {}
    if "full_attention" in rope:  # a rope for each kind of layer
        local, rope = rope["sliding_attention"], rope["full_attention"]
        _scaling(local, where, ("default",))
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
        "rope_scaling": _scaling(rope, where, ("default", "linear", "llama3")),
        "local_rope_theta": local.get("rope_theta", 0.0),
    }


def _scaling(rope: Mapping[str, Any], where: str, kinds: tuple[str, ...]) -> RopeScaling | None:
    kind = rope["rope_type"]
    if kind not in kinds:
        raise UserError(
            f"{where}: rope_type {kind!r} is not supported; there are {', '.join(kinds)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        value = rope["partial_rotary_factor"]
        raise UserError(f"{where}: partial_rotary_factor={value} is not supported; only 1.0 is")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope["factor"])
    return RopeScaling(
        "llama3",
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )


def _layer_windows(config: Any) -> tuple[int, ...]:
    """Windows by ``layer_types``; () if no layer has one."""
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    return tuple(config.sliding_window if s else 0 for s in sliding) if any(sliding) else ()


def _llama(config: Any) -> dict[str, Any]:
    return {
        "activation": config.hidden_act,
        "qkv_bias": config.attention_bias,
        "o_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def _mistral(config: Any) -> dict[str, Any]:
    window = config.sliding_window
    return {
        "activation": config.hidden_act,
        "windows": (window,) * config.num_hidden_layers if window else (),
    }


def _qwen2(config: Any) -> dict[str, Any]:
    return {
        "activation": config.hidden_act,
        "qkv_bias": True,
        "windows": _layer_windows(config),
    }


def _qwen3(config: Any) -> dict[str, Any]:
    return {
        "activation": config.hidden_act,
        "qkv_bias": config.attention_bias,
        "o_bias": config.attention_bias,
        "qk_norm": True,
        "windows": _layer_windows(config),
    }


def _gemma(config: Any) -> dict[str, Any]:
    return {
        "activation": config.hidden_activation,
        "qkv_bias": config.attention_bias,
        "o_bias": config.attention_bias,
        "windows": _layer_windows(config),
        "attention_scale": config.query_pre_attn_scalar**-0.5,
        "logit_softcap": config.final_logit_softcapping or 0.0,
        "unit_offset_norm": True,
        "post_norms": True,
        "scale_embedding": True,
    }


def _gemma2(config: Any) -> dict[str, Any]:
    return {**_gemma(config), "attention_softcap": config.attn_logit_softcapping or 0.0}


def _gemma3(config: Any) -> dict[str, Any]:
    return {**_gemma(config), "qk_norm": True}


_WINDOWS = "layer_types sliding_window"
_GEMMA = f"""{_WINDOWS} hidden_activation attention_bias query_pre_attn_scalar
    final_logit_softcapping"""

FAMILIES: dict[str, Family] = {
    "llama": Family(_LAYER, _llama, "hidden_act attention_bias mlp_bias"),
    "mistral": Family(_LAYER, _mistral, "hidden_act sliding_window"),
    "qwen2": Family(_LAYER, _qwen2, f"hidden_act {_WINDOWS}"),
    "qwen3": Family(_LAYER, _qwen3, f"hidden_act attention_bias {_WINDOWS}"),
    "gemma2": Family(_SANDWICH, _gemma2, f"{_GEMMA} attn_logit_softcapping"),
    "gemma3_text": Family(_SANDWICH, _gemma3, _GEMMA),
}
