import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ideal_jax import trees
from ideal_jax.influence.curvature import (
    GaussNewton,
    mean_eigenvalue,
    product_sum,
    total_weight,
)
from ideal_jax.influence.passes import Placement


def as_matrix(operator, params):
    """The operator applied to every unit vector at once."""
    flat, unravel = ravel_pytree(params)
    product = operator.multiply(jax.vmap(unravel)(jnp.eye(flat.size)))
    return np.asarray(jax.vmap(lambda t: ravel_pytree(t)[0])(product))


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_product_equals_the_dense_matrix(tiny, reduction):
    batches = tiny.batches(tiny.examples(11, reduction=reduction), 4)
    weight = total_weight(tiny.problem, tiny.params, batches)
    operator = GaussNewton(tiny.problem, tiny.params, batches, weight, 0.0)
    expected = tiny.dense_ggn(tiny.problem, tiny.params, batches)
    np.testing.assert_allclose(as_matrix(operator, tiny.params), expected, rtol=0, atol=1e-12)
    assert np.abs(expected).max() > 1e-2


def test_regulariser_and_damping_are_added(tiny):
    batches = tiny.batches(tiny.examples(6), 6)
    weight = total_weight(tiny.problem, tiny.params, batches)
    plain = as_matrix(GaussNewton(tiny.problem, tiny.params, batches, weight, 0.0), tiny.params)
    full = as_matrix(GaussNewton(tiny.ridged, tiny.params, batches, weight, 0.3), tiny.params)
    np.testing.assert_allclose(full, plain + (0.1 + 0.3) * np.eye(len(plain)), atol=1e-12)


def test_padding_and_batch_size_change_nothing(tiny):
    examples = tiny.examples(9)
    products = []
    for batches in (tiny.batches(examples, 9), tiny.batches(examples, 4, extra_tokens=3)):
        weight = total_weight(tiny.problem, tiny.params, batches)
        operator = GaussNewton(tiny.problem, tiny.params, batches, weight, 0.1)
        products.append(as_matrix(operator, tiny.params))
    np.testing.assert_allclose(products[0], products[1], rtol=0, atol=1e-13)


def test_vectors_share_one_forward_pass(tiny):
    """The model's nonlinearities are evaluated unbatched, however many vectors there are."""
    (batch,) = tiny.batches(tiny.examples(6), 6)

    def tanhs(r):
        vectors = jax.tree.map(lambda x: jnp.ones((r, *x.shape)), tiny.params)
        lowered = product_sum.lower(tiny.problem, Placement(), tiny.params, vectors, batch)
        text = lowered.as_text()
        return [line.split(":")[-1] for line in text.splitlines() if "stablehlo.tanh" in line]

    assert tanhs(3) == tanhs(1)
    assert tanhs(1)


def test_trace_by_probes(tiny):
    batches = tiny.batches(tiny.examples(11), 4)
    weight = total_weight(tiny.problem, tiny.params, batches)
    exact = np.trace(tiny.dense_ggn(tiny.problem, tiny.params, batches)) / trees.size(tiny.params)
    estimates = [
        mean_eigenvalue(tiny.problem, tiny.params, batches, weight, key=jax.random.key(seed))
        for seed in range(4)
    ]
    assert abs(np.mean(estimates) / exact - 1) < 0.15
    assert len(set(estimates)) == 4
