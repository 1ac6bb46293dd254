import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ideal_jax import trees
from ideal_jax.influence import Sample, example_scores, mean_gradient
from ideal_jax.influence.scores import without


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-11), (jnp.float32, 1e-5)])
def test_scores_sum_to_the_gradient_inner_product(tiny, dtype, tolerance):
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.params)
    examples = {k: v.astype(dtype) if v.dtype == float else v for k, v in tiny.examples(11).items()}
    sample = Sample(tiny.batches(examples, 4), size=11)
    tangents = [tiny.init(seed) for seed in (1, 2, 3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x).astype(dtype), *tangents)
    mean = mean_gradient(tiny.problem.example_loss, params, sample)
    scored = example_scores(tiny.problem.example_loss, params, stacked, sample)
    for row, tangent in zip(scored.scores, tangents, strict=True):
        expected = float(trees.dot(mean.gradient, tangent)) * mean.weight
        assert abs(row.sum() - expected) <= tolerance * np.abs(row).sum()
    np.testing.assert_allclose(scored.weights.sum(), mean.weight, rtol=1e-6)


def test_each_score_is_the_example_gradient_along_the_tangent(tiny):
    sample = Sample(tiny.batches(tiny.examples(7), 3), size=7)
    tangent = tiny.init(1)
    gradients, weights = tiny.gradients(tiny.problem, tiny.params, sample.batches)
    scored = example_scores(
        tiny.problem.example_loss, tiny.params, jax.tree.map(lambda x: x[None], tangent), sample
    )
    expected = gradients @ np.asarray(ravel_pytree(tangent)[0])
    np.testing.assert_allclose(scored.scores[0], expected, atol=1e-12)
    np.testing.assert_array_equal(scored.weights, weights)
    assert np.all(scored.scores[:, 7:] == 0)
    assert np.all(scored.weights[7:] == 0)


def test_a_gradient_in_a_part_of_the_parameters(tiny):
    sample, left_out = Sample(tiny.batches(tiny.examples(7), 3), size=7), frozenset({"embed"})
    whole = mean_gradient(tiny.problem.example_loss, tiny.params, sample)
    part = mean_gradient(tiny.problem.example_loss, tiny.params, sample, left_out=left_out)
    expected = whole._replace(gradient=without(whole.gradient, left_out))
    assert expected.gradient["embed"] is None
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-14), part, expected)


def test_mean_gradient_is_one_division_whatever_the_batches(tiny):
    examples = tiny.examples(11)
    gradients, weights = tiny.gradients(tiny.problem, tiny.params, tiny.batches(examples, 11))
    expected = gradients.sum(0) / weights.sum()
    for size, extra in ((11, 0), (4, 2)):
        sample = Sample(tiny.batches(examples, size, extra_tokens=extra), size=11)
        mean = mean_gradient(tiny.problem.example_loss, tiny.params, sample)
        np.testing.assert_allclose(ravel_pytree(mean.gradient)[0], expected, atol=1e-13)
    losses = [tiny.problem.example_loss(tiny.params, b)[0].sum() for b in sample.batches]
    np.testing.assert_allclose(mean.loss, sum(losses) / weights.sum())
