"""The keys of a Hugging Face config: understood, without effect, refused, or read by nobody.

A published config.json holds what some version of some tool wrote. What decides is what the class
in ``transformers`` does with a key:

* it does not read it: then it cannot change what is computed, and is told once;
* it reads it, and so do we, or it says nothing about what is computed from tokens: fine;
* it reads it and we do not: fine at its default, else refused by name.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ideal_jax.errors import UserError
from ideal_jax.models.rope import RopeScaling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys that say nothing about what the model computes from tokens.
_NEUTRAL = _keys(
    """_attn_implementation _attn_implementation_autoset _commit_hash _experts_implementation
    _name_or_path _sliding_window_pattern architectures attn_implementation auto_map bos_token_id
    dtype eos_token_id experts_implementation gradient_checkpointing id2label initializer_range
    label2id max_window_layers model_type name_or_path num_labels
    output_attentions output_hidden_states pad_token_id pretraining_tp problem_type return_dict
    torch_dtype transformers_version use_cache use_sliding_window"""
)
# Keys of every family that ``families`` reads, and their older names.
_COMMON = _keys(
    """head_dim hidden_size intermediate_size max_position_embeddings num_attention_heads
    num_hidden_layers num_key_value_heads original_max_position_embeddings partial_rotary_factor
    rms_norm_eps rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size"""
)
# Keys that are no field of a class and that transformers acts upon all the same, and the value that
# does nothing; the cache of ``generate`` reads those of attention, whatever the model masks.
_ACTED_ON: dict[str, Any] = {
    "attention_chunk_size": None,
    "fusion_config": None,
    "is_causal": True,
    "layer_types": None,
    "per_layer_config": None,
    "quantization_config": None,
    "sliding_window": None,
    "transformers_weights": None,
}
# What is read of a rope's parameters, by its type.
_ANY_ROPE = _keys("rope_type type rope_theta partial_rotary_factor")
_ROPES = {
    "default": _keys(""),
    "linear": _keys("factor"),
    "dynamic": _keys("factor"),
    "llama3": _keys("factor low_freq_factor high_freq_factor original_max_position_embeddings"),
    "yarn": _keys(
        """factor attention_factor beta_fast beta_slow mscale mscale_all_dim
        original_max_position_embeddings truncate"""
    ),
}


def check_keys(
    config: "PreTrainedConfig", values: Mapping[str, Any], reads: str, where: str
) -> list[str]:
    """Keys of the file that ``transformers`` does not read.

    Args:
      config: from ``transformers``.
      values: the file, as it was written.
      reads: the keys that the family reads beyond the common ones.
      where: the file, for error messages.

    Raises:
      UserError: ``transformers`` reads a key that we do not compute; names it.
    """
    usual = {**_ACTED_ON, **type(config)().to_dict()}
    understood = _NEUTRAL | _COMMON | _keys(reads)
    unread = []
    for key, value in values.items():
        if key in understood or not (value or usual.get(key)) or value == usual.get(key):
            continue  # what is off means nothing
        if key not in usual or (key == "layer_types" and set(value) == {"full_attention"}):
            unread.append(key)
        else:
            only = "models without it are" if usual[key] is None else f"{usual[key]!r} is"
            raise UserError(
                f"{where}: {key}={value!r} is not supported for {config.model_type}; only {only}"
            )
    return sorted(unread) + _unread_of_ropes(config)


def read_rope(
    config: Any, rope: Mapping[str, Any], where: str, kinds: tuple[str, ...] = tuple(_ROPES)
) -> RopeScaling | None:
    """What a rope's parameters say beyond its base; None: nothing.

    Args:
      config: whose they are.
      rope: in the form of transformers 5 (``rope_type``, ``rope_theta``, …).
      where: the file, for error messages.
      kinds: the types that are computed here.

    Raises:
      UserError: another type, or a value that is not computed.
    """
    kind = rope.get("rope_type")
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
        return RopeScaling(kind, _number(rope, "factor", where))
    if kind == "dynamic":
        factor, length = _number(rope, "factor", where), config.max_position_embeddings
        return RopeScaling(kind, factor, original_length=length)
    length = _number(rope, "original_max_position_embeddings", where)
    if kind == "llama3":
        factor, low, high = (
            _number(rope, name, where) for name in ("factor", "low_freq_factor", "high_freq_factor")
        )
        return RopeScaling(kind, factor, low, high, length)
    return _yarn(config, rope, length, where)


def _yarn(config: Any, rope: Mapping[str, Any], length: int, where: str) -> RopeScaling:
    """As ``transformers`` fills in what is left out."""
    given = {**rope, "factor": rope.get("factor") or config.max_position_embeddings / length}
    factor = _number(given, "factor", where)

    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if given.get("attention_factor") is not None:
        attention = _number(given, "attention_factor", where)
    elif given.get("mscale") and given.get("mscale_all_dim"):
        attention = grown(given["mscale"]) / grown(given["mscale_all_dim"])
    else:
        attention = grown(1.0)
    return RopeScaling(
        "yarn",
        factor,
        given.get("beta_slow") or 1,
        given.get("beta_fast") or 32,
        length,
        attention,
        bool(given.get("truncate", True)),
    )


def _number(rope: Mapping[str, Any], name: str, where: str) -> Any:
    value = rope.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(
            f"{where}: {name}={value!r} of rope_type {rope['rope_type']!r} is no positive number"
        )
    return value


def _unread_of_ropes(config: Any) -> list[str]:
    rope = config.rope_parameters
    ropes = {
        f"{kind}.": rope[kind] for kind in ("full_attention", "sliding_attention") if kind in rope
    } or {"": rope}
    unread = []
    for prefix, one in ropes.items():
        kind = one.get("rope_type")
        read = _ANY_ROPE | _ROPES.get(kind, frozenset(one))
        for key in sorted(one):
            if key not in read or (key == "type" and one[key] != kind):
                unread.append(f"rope_scaling.{prefix}{key}")
    return unread
