"""What the backward pass recomputes changes memory and time, not the loss or its gradients."""

import functools

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ideal_jax.models import REMAT, Decoder, DecoderConfig, decoder_loss

SHAPE = DecoderConfig(50, 16, 3, 4, 2, 6, 24)


@functools.cache
def loss_and_grads(**changes):
    model = Decoder(DecoderConfig(**{**vars(SHAPE), **changes}))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 1, 50)
    params = compiled.init(Decoder(SHAPE))
    batch = {
        "tokens": tokens,
        "targets": jnp.roll(tokens, -1, axis=1),
        "positions": jnp.broadcast_to(jnp.arange(12), (2, 12)),
        "segments": jnp.ones((2, 12), jnp.int32),
        "weights": jnp.ones((2, 12)),
    }

    def total(params):
        return decoder_loss(model, 5)(params, batch)[0]

    function = jax.jit(jax.value_and_grad(total))
    return function(params), str(jax.make_jaxpr(jax.grad(total))(params))


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_loss_and_gradients_stay(remat):
    (loss, grads), program = loss_and_grads(remat=remat)
    (expected_loss, expected_grads), plain = loss_and_grads()
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert program.count("dot_general") >= plain.count("dot_general")
    if remat == "offload":
        assert "host" in program
        assert "host" not in plain


def test_layers_may_be_unrolled():
    (loss, grads), _ = loss_and_grads(unroll=3)
    (expected_loss, expected_grads), _ = loss_and_grads()
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
        grads,
        expected_grads,
    )


def test_the_more_is_kept_the_less_is_computed_again():
    products = {name: loss_and_grads(remat=name)[1].count("dot_general") for name in REMAT}
    assert products["none"] < products["dots"] < products["full"] == products["offload"]
