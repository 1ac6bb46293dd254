"""Gradients of several right-hand sides at once equal those of one at a time, in float32.

Some releases of XLA:CPU get this wrong; ``ideal_jax`` switches the cause off on import.
"""

import compiled
import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax.models import Decoder, DecoderConfig


def test_batched_pullbacks_are_right():
    shape = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 128}
    model = Decoder(DecoderConfig(vocab_size=40, d_model=64, **shape))
    tokens_BxT = jax.random.randint(jax.random.key(1), (32, 32), 0, 40)
    params = compiled.init(model)
    cotangents = jax.random.normal(jax.random.key(2), (3, 32, 32, 40))

    def pull(cotangent):
        return jax.vjp(lambda p: model.apply({"params": p}, tokens_BxT), params)[1](cotangent)[0]

    together = jax.jit(jax.vmap(pull))(cotangents)
    apart = jax.jit(lambda c: jax.lax.map(pull, c))(cotangents)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))
