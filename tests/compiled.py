"""A decoder's programs compiled whole: operation by operation they take several times as long."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


def init(model, seed=0):
    """Parameters, unboxed."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    return nn.unbox(jax.jit(model.init)(jax.random.key(seed), tokens)["params"])


def apply(model, params, *arguments, method=None):
    """What ``model.apply`` gives."""
    return _applied(model, method)({"params": params}, *arguments)


@functools.cache
def _applied(model, method):
    return jax.jit(functools.partial(model.apply, method=method))
