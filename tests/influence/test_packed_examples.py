"""The decoder as a problem: several examples in a row are the same as one in each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ideal_jax.data import TokenStore, example_batches, packed_batches
from ideal_jax.data.store import Example
from ideal_jax.influence import Sample, example_scores, mean_gradient
from ideal_jax.influence.curvature import random_signs
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.models import Decoder, DecoderConfig

LENGTHS = (5, 16, 3, 9, 7, 4, 12, 2, 6, 8)
SIZES = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 16}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(5, 60, length) for length in LENGTHS]
    masks = [np.arange(length) >= max(1, length // 3) for length in LENGTHS]
    pairs = enumerate(zip(tokens, masks, strict=True))
    examples = [Example(k, str(k), t, m) for k, (t, m) in pairs]
    return TokenStore.write(tmp_path_factory.mktemp("store") / "s", examples)


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_packed_rows_change_no_loss_no_gradient_and_no_score(store, reduction):
    items = np.arange(len(LENGTHS))
    single = example_batches(store, items, 0, batch_size=4, lengths=(8, 16), reduction=reduction)
    packed = packed_batches(
        store, items, 0, batch_size=2, row_length=16, max_segments=4, reduction=reduction
    )
    assert packed.positions < single.positions
    with jax.enable_x64(True):
        model = Decoder(DecoderConfig(64, **SIZES, dtype="float64", param_dtype="float64"))
        problem = decoder_problem(model)
        loss = jax.jit(problem.example_loss)
        params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
        params = jax.tree.map(
            lambda x: getattr(x, "value", x), params, is_leaf=lambda x: hasattr(x, "value")
        )
        tangents = jax.tree.map(lambda x: x[None], random_signs(params, jax.random.key(2)))
        rows, gradients, losses = [], [], []
        for batches in (single, packed):
            sample = Sample(batches, len(items))
            scored = example_scores(problem.example_loss, params, tangents, sample)
            order, real = np.argsort(batches.items, kind="stable"), batches.items >= 0
            order = order[np.count_nonzero(~real) :]
            assert np.all(scored.weights[~real] == 0)
            rows.append((scored.scores[0, order], scored.weights[order]))
            gradients.append(mean_gradient(problem.example_loss, params, sample))
            found = [loss(params, batch)[0].reshape(-1) for batch in batches]
            losses.append(np.concatenate(found)[order])
    np.testing.assert_allclose(*losses, rtol=1e-7)
    for one, other in zip(*rows, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    assert gradients[0].loss == pytest.approx(gradients[1].loss, rel=1e-7)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
        gradients[0].gradient,
        gradients[1].gradient,
    )
