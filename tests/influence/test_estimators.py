"""Every estimator against explicit matrices on a model of 88 parameters, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_matrix import dense_influence, setting

from ideal_jax.errors import UserError
from ideal_jax.influence import ESTIMATORS, Options, Setting, estimate, influence_matrix
from ideal_jax.influence.problem import leaf_indices

EXACT = Options(damping=0.02, damping_mode="absolute", tolerance=1e-12, iterations=400)


def dense_hessian(problem, params, batches):
    flat, unravel = ravel_pytree(params)

    def mean(vector):
        pairs = [problem.example_loss(unravel(vector), batch) for batch in batches]
        return sum(l_B.sum() for l_B, _ in pairs) / sum(w_B.sum() for _, w_B in pairs)

    hessian = np.asarray(jax.jit(jax.hessian(mean))(flat))
    if problem.regulariser is not None:
        hessian = hessian + np.asarray(jax.hessian(lambda v: problem.regulariser(unravel(v)))(flat))
    return hessian


def agree(found, expected, allowed):
    assert np.abs(found - expected).max() <= allowed * np.abs(expected).max()


@pytest.mark.parametrize("reduction", ["token", "example"])
@pytest.mark.parametrize("kind", ["problem", "ridged", "untapped"])
def test_hessian_cg_equals_the_dense_solve(tiny, kind, reduction):
    problem, setup = getattr(tiny, kind), setting(tiny, reduction)
    hessian = dense_hessian(problem, tiny.params, setup["curvature"])
    smallest = np.linalg.eigvalsh(hessian)[0]
    damping = 0.02 - smallest  # enough to make it positive
    options = Options(damping, "absolute", tolerance=1e-12, iterations=400)
    matrix, notes = estimate(problem, tiny.params, **setup, estimator="hessian_cg", options=options)
    np.testing.assert_allclose(notes.smallest_eigenvalue, smallest, rtol=1e-6)
    assert matrix.damping >= damping
    inverse = np.linalg.inv(hessian + matrix.damping * np.eye(len(hessian)))
    expected = dense_influence(tiny, problem, tiny.params, setup, inverse, True)
    agree(matrix.matrix, expected, 1e-8)
    agree(notes.adjoint, expected, 1e-8)
    assert matrix.solve_residual.max() < 1e-10


def test_hessian_cg_raises_its_damping_over_negative_curvature(tiny):
    setup = setting(tiny)
    smallest = np.linalg.eigvalsh(dense_hessian(tiny.problem, tiny.params, setup["curvature"]))[0]
    assert smallest < -1e-3  # random parameters are no minimum
    options = Options(1e-4, "absolute", tolerance=1e-8, iterations=400)
    matrix, _ = estimate(
        tiny.problem, tiny.params, **setup, estimator="hessian_cg", options=options
    )
    np.testing.assert_allclose(matrix.damping, -1.5 * smallest, rtol=1e-4)
    assert matrix.damping_value == 1e-4
    assert matrix.solve_residual.max() < 1e-7


def test_hessian_cg_needs_no_more_than_a_loss(tiny):
    setup, options = setting(tiny), {"damping": 2.0, "tolerance": 1e-12, "iterations": 400}
    given = {**setup, "estimator": "hessian_cg", **options}
    found = influence_matrix(
        tiny.problem.example_loss, tiny.params, **given, damping_mode="absolute"
    )
    whole = influence_matrix(tiny.untapped, tiny.params, **given, damping_mode="absolute")
    np.testing.assert_allclose(found.matrix, whole.matrix, rtol=1e-10)
    with pytest.raises(UserError, match="hessian_cg with relative damping' needs Problem"):
        influence_matrix(tiny.problem.example_loss, tiny.params, **given)


@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_fisher_diagonal_equals_single_gradients(tiny, mode):
    setup = setting(tiny)
    options = Options(0.02, mode, fisher="empirical")
    matrix, notes = estimate(
        tiny.problem, tiny.params, **setup, estimator="fisher_diag", options=options
    )
    gradients, weights = tiny.gradients(tiny.problem, tiny.params, setup["curvature"])
    diagonal = (gradients**2).sum(0) / weights.sum()
    _, unravel = ravel_pytree(tiny.params)
    damping = jax.tree.map(
        lambda x: jnp.full_like(x, 0.02 * (jnp.mean(x) if mode == "relative" else 1)),
        unravel(diagonal),
    )
    inverse = np.diag(1 / (diagonal + ravel_pytree(damping)[0]))
    expected = dense_influence(tiny, tiny.problem, tiny.params, setup, inverse, True)
    agree(matrix.matrix, expected, 1e-12)
    assert set(notes.block_damping) == {"embed", "layers/bias", "layers/kernel", "head/kernel"}
    plain = influence_matrix(
        tiny.problem.example_loss,
        tiny.params,
        **setup,
        estimator="fisher_diag",
        damping=0.02,
        damping_mode=mode,
        fisher="empirical",
    )
    np.testing.assert_allclose(plain.matrix, matrix.matrix, rtol=1e-10)


def test_sampled_fisher_diagonal_nears_that_of_the_gauss_newton_matrix(tiny):
    batches = setting(tiny)["curvature"]
    exact = np.diag(tiny.dense_ggn(tiny.problem, tiny.params, batches))

    def draw(seed):
        fitted = ESTIMATORS["fisher_diag"].fit(
            Setting(tiny.problem, tiny.params, batches, jax.random.key(seed), EXACT)
        )
        named = fitted.state.diagonal
        return np.concatenate([np.ravel(named[name]) for name in leaf_indices(tiny.params)])

    draws = [draw(seed) for seed in range(100)]
    error = [np.linalg.norm(d - exact) / np.linalg.norm(exact) for d in (np.mean(draws, 0), *draws)]
    assert error[0] < 0.1 < min(error[1:])


def test_adam_divides_by_the_roots(tiny):
    setup = setting(tiny)
    rng = np.random.default_rng(0)
    moment = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape)), tiny.params)
    given = {"damping": 0.02, "damping_mode": "absolute", "estimator": "adam"}
    found = influence_matrix(
        tiny.problem.example_loss, tiny.params, **setup, **given, second_moment=moment
    )
    inverse = np.diag(1 / (np.sqrt(ravel_pytree(moment)[0]) + 0.02))
    agree(
        found.matrix,
        dense_influence(tiny, tiny.problem, tiny.params, setup, inverse, True),
        1e-12,
    )
    with pytest.raises(UserError, match="'adam' needs second_moment"):
        influence_matrix(tiny.problem, tiny.params, **setup, **given)


def test_official_equals_the_formula_by_hand(tiny):
    """Loops over layers and batches with explicit kernels; no other parameter takes part."""
    setup = setting(tiny)
    matrix, _ = estimate(tiny.problem, tiny.params, **setup, estimator="official")

    def mean(params, batch):
        l_B, w_B = tiny.problem.example_loss(params, batch)
        return l_B.sum() / w_B.sum()

    mean_gradient = jax.jit(jax.grad(mean))

    def kernels(batch):
        gradient = mean_gradient(tiny.params, batch)
        return [*gradient["layers"]["kernel"], gradient["head"]["kernel"]]

    def whole(sample):
        batch = jax.tree.map(lambda *x: jnp.concatenate(x), *sample.batches)
        return kernels(batch)

    # Second moments of inputs and output gradients over the real positions, all batches together.
    inputs, outputs, positions, weight = [0.0] * 3, [0.0] * 3, 0, 0.0

    def total(perturbations, batch):
        out, seen = tiny.perturbed(tiny.params, perturbations, batch)
        return jnp.sum(tiny.loss(out, batch)[0]), seen

    tapped = jax.jit(jax.grad(total, has_aux=True))
    for batch in setup["curvature"]:
        grads, seen = tapped(tiny.zeros(tiny.params, batch), batch)
        real = np.asarray(batch["mask"])
        for k in range(3):
            a = seen["up"][k] if k < 2 else seen["head"]
            g = grads["up"][k] if k < 2 else grads["head"]
            inputs[k] = inputs[k] + np.asarray(a[real].T @ a[real])
            outputs[k] = outputs[k] + np.asarray(g[real].T @ g[real])
        positions += real.sum()
        weight += float(batch["weights"].sum())

    expected = np.zeros((2, 3))
    for k in range(3):
        q_a = np.linalg.eigh(inputs[k] / positions)[1]
        q_g = np.linalg.eigh(outputs[k] / weight)[1]

        def rotate(kernel, q_a=q_a, q_g=q_g):
            return q_a @ np.asarray(kernel) @ q_g.T

        squares = [rotate(kernels(batch)[k]) ** 2 for batch in setup["curvature"]]
        eigenvalues = np.mean(squares, axis=0)
        for i, reference in enumerate(setup["references"].values()):
            for j, domain in enumerate(setup["domains"].values()):
                product = rotate(whole(reference)[k]) * rotate(whole(domain)[k]) * eigenvalues
                expected[i, j] -= product.sum() / 3  # each of three domains counts the same
    # The signs of eigenvectors matter in this arithmetic; both sides take LAPACK's.
    agree(matrix.matrix, expected, 1e-10)
    assert not matrix.centred
    assert matrix.damping == 0
