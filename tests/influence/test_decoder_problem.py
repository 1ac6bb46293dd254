import dataclasses

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.models import Decoder, DecoderConfig
from ideal_jax.taps import Tap

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
    ("layers", "max_factor", "count", "remat"),
    [
        ("all", 64, 8, "none"),
        ("all", 63, 7, "full"),
        ("mlp", 64, 3, "dots"),
        ("attention/[qk]", 64, 2, "full"),
    ],
)
def test_taps_rebuild_the_gradient_of_their_layers(layers, max_factor, count, remat):
    tokens = np.random.default_rng(0).integers(0, 16, (3, 5))
    params = compiled.init(MODEL)
    batch = {
        "tokens": tokens,
        "positions": jnp.broadcast_to(jnp.arange(5), tokens.shape),
        "segments": jnp.ones_like(tokens),
    }

    shapes = {path: x.shape for path, x in traverse_util.flatten_dict(params, sep="/").items()}

    def tapped(problem):
        """What taps make of each layer: the gradient of its kernel."""

        def tap(layer):
            zeros = jnp.zeros(shapes[layer.leaf], params["embedding"].dtype)
            form = lambda x, g, _: jnp.einsum("bti,bto->io", x, g)  # noqa: E731
            return Tap(form, (), zeros)

        taps = {layer.name: tap(layer) for layer in problem.taps.layers}

        def total(params, zeros):
            given = {n: dataclasses.replace(taps[n], zeros=zeros[n]) for n in taps}
            out = problem.taps.run(params, given, batch)
            return jnp.sum(out**2), out

        zeros = {name: tap.zeros for name, tap in taps.items()}
        (gradient, found), out = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, zeros)
        np.testing.assert_allclose(out, jax.jit(problem.outputs)(params, batch), rtol=1e-12)
        return found, traverse_util.flatten_dict(gradient, sep="/")

    model = Decoder(dataclasses.replace(MODEL.cfg, remat=remat))
    problem = decoder_problem(model, layers, max_factor)
    assert len(problem.taps.layers) == count
    found, gradient = tapped(problem)
    for layer in problem.taps.layers:
        np.testing.assert_allclose(found[layer.name], gradient[layer.leaf], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_influence_differentiates_forwards_whatever_kernel_trains(kernel):
    fused = Decoder(dataclasses.replace(MODEL.cfg, attention=kernel))
    tokens = np.random.default_rng(0).integers(0, 16, (3, 5))
    params = compiled.init(MODEL)
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

        @jax.jit
        def along(tangent):
            return jax.jvp(lambda p: problem.example_loss(p, batch)[0], (params,), (tangent,))[1]

        return along(tangent)

    np.testing.assert_allclose(slopes(fused), slopes(MODEL), rtol=1e-12)
