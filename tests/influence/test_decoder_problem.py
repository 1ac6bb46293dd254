import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.models import Decoder, DecoderConfig

MODEL = Decoder(
    DecoderConfig(
        vocab_size=16,
        d_model=8,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        head_dim=4,
        d_ff=16,
        tie_embeddings=False,
        dtype="float64",
        param_dtype="float64",
    )
)


@pytest.mark.parametrize(
    ("layers", "max_factor", "count"),
    [("all", 64, 8), ("all", 63, 7), ("mlp", 64, 3), ("attention/[qk]", 64, 2)],
)
def test_tapping_some_layers_equals_tapping_all(layers, max_factor, count):
    tokens = np.random.default_rng(0).integers(0, 16, (3, 5))
    params = meta.unbox(MODEL.init(jax.random.key(0), tokens))["params"]
    batch = {
        "tokens": tokens,
        "positions": jnp.broadcast_to(jnp.arange(5), tokens.shape),
        "segments": jnp.ones_like(tokens),
    }

    def tapped(problem):
        def total(perturbations):
            out, inputs = problem.taps.run(params, perturbations, batch)
            return jnp.sum(out**2), (out, inputs)

        zeros = problem.taps.zeros(params, batch)
        gradients, (out, inputs) = jax.grad(total, has_aux=True)(zeros)
        np.testing.assert_allclose(out, problem.outputs(params, batch), rtol=1e-12)
        return gradients, inputs

    some, every = decoder_problem(MODEL, layers, max_factor), decoder_problem(MODEL)
    assert len(some.taps.layers) == count
    for found, expected in zip(tapped(some), tapped(every), strict=True):
        assert set(found) == {layer.name for layer in some.taps.layers}
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-10)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_influence_differentiates_forwards_whatever_kernel_trains(kernel):
    fused = Decoder(dataclasses.replace(MODEL.cfg, attention=kernel))
    tokens = np.random.default_rng(0).integers(0, 16, (3, 5))
    params = meta.unbox(MODEL.init(jax.random.key(0), tokens))["params"]
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": jnp.broadcast_to(jnp.arange(5), tokens.shape),
        "segments": jnp.ones_like(tokens),
        "weights": jnp.ones(tokens.shape),
        "examples": jnp.arange(3)[:, None],
    }
    tangent = jax.tree.map(jnp.ones_like, params)

    def slopes(model):
        problem = decoder_problem(model)
        return jax.jvp(lambda p: problem.example_loss(p, batch)[0], (params,), (tangent,))[1]

    np.testing.assert_allclose(slopes(fused), slopes(MODEL), rtol=1e-12)
