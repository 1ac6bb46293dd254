"""Rotary positions (Su et al., "RoFormer", arXiv 2104.09864) and their stretched forms."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class RopeScaling(NamedTuple):
    """How rotary frequencies are stretched to contexts longer than those of pre-training.

    A pair of a head's dimensions turns ``original_length * frequency / 2π`` times in the contexts
    of pre-training.

    kind: "linear" divides all frequencies by ``factor`` (Chen et al., arXiv 2306.15595).
      "llama3" divides those that turn less than ``low`` times, keeps those that turn more than
      ``high`` times, and blends by turns in between (Llama 3.1).
      "yarn" does so too, but blends by the dimension's number, and multiplies queries and keys by
      ``attention_factor`` (Peng et al., arXiv 2309.00071).
      "dynamic" keeps them in examples of up to ``original_length`` tokens and raises their base in
      longer ones, by the example's own length: never by its neighbours in a row or batch. A token
      that ``Decoder.decode`` appends counts the length so far, as in transformers.
    truncate: "yarn" begins and ends its blend at whole dimensions.
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192
    attention_factor: float = 1.0
    truncate: bool = True


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, [B, T, 1, H/2]."""

    cos: jax.Array
    sin: jax.Array


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """float64[H/2]: radians per position of each pair of a head's dimensions.

    Those of "dynamic" are of examples within the original length.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    slowed = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slowed
    if scaling.kind == "llama3":
        turns = scaling.original_length * frequencies / (2 * math.pi)
        keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    else:
        keep = _yarn_keeps(head_dim, theta, scaling)
    return keep * frequencies + (1 - keep) * slowed


def _yarn_keeps(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """float64[H/2]: 1 where a frequency stays, 0 where it is divided."""

    def place(turns: float) -> float:
        """The number of the dimension that turns so often, between numbers as it may be."""
        length = scaling.original_length / (turns * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(theta))

    begin, end = place(scaling.high), place(scaling.low)
    if scaling.truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, head_dim - 1)
    end = end + 0.001 if begin == end else end
    return 1 - np.clip((np.arange(head_dim // 2) - begin) / (end - begin), 0, 1)


def rotation(
    positions_BxT: jax.Array,
    lengths_BxT: jax.Array | None,
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None,
    wide: Any,
) -> Rotation:
    """The rotary angles of tokens, in the dtype ``wide``.

    Args:
      positions_BxT: of each token in its example.
      lengths_BxT: tokens of each token's example; read by "dynamic" alone.
      head_dim, theta, scaling: as ``rope_frequencies``.
      wide: at least float32.
    """
    angles_BxTx1xH = positions_BxT[:, :, None, None] * jnp.asarray(
        rope_frequencies(head_dim, theta, scaling), wide
    )
    if scaling is not None and scaling.kind == "dynamic":
        assert lengths_BxT is not None
        angles_BxTx1xH *= _raised_base(lengths_BxT, head_dim, scaling, wide)

    def at_once(angles: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.cos(angles), jnp.sin(angles)

    def in_a_loop(angles: jax.Array) -> tuple[jax.Array, ...]:
        """Whose results XLA:CPU keeps; else it takes sines again for every layer and head."""
        return tuple(jax.lax.map(lambda i: jnp.stack(at_once(angles))[i], jnp.arange(2)))

    turned = Rotation(*jax.lax.platform_dependent(angles_BxTx1xH, cpu=in_a_loop, default=at_once))
    if scaling is None or scaling.attention_factor == 1.0:
        return turned
    return Rotation(*(x * scaling.attention_factor for x in turned))


def _raised_base(
    lengths_BxT: jax.Array, head_dim: int, scaling: RopeScaling, wide: Any
) -> jax.Array:
    """[B, T, 1, H/2]: what frequencies are multiplied by when their base is raised for a length.

    The base θ becomes θ·s^(H/(H-2)) with s = factor·length/original - (factor - 1).
    """
    longer = jnp.maximum(lengths_BxT, scaling.original_length).astype(wide)
    stretch = scaling.factor * longer / scaling.original_length - (scaling.factor - 1)
    powers = -np.arange(0, head_dim, 2) / (head_dim - 2)
    return stretch[:, :, None, None] ** jnp.asarray(powers, wide)


def rotate(x_BxTxNxH: jax.Array, by: Rotation) -> jax.Array:
    """Rotary position embedding in the half-split layout of Hugging Face's Llama."""
    first, second = jnp.split(x_BxTxNxH.astype(by.cos.dtype), 2, axis=-1)
    turned = [first * by.cos - second * by.sin, second * by.cos + first * by.sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BxTxNxH.dtype)
