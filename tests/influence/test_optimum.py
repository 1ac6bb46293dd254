"""Influence at a verified optimum of a nonlinear model against retraining with 1 ± 0.15 weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import optimize

from ideal_jax.influence import Problem, Sample, influence_matrix

COUNTS, HELD_OUT, SIZE, CHANGE = (40, 24, 16), 20, 20, 0.15


def study(tiny):
    """Three domains whose labels are shifted against each other, two references, and L_β + ρ."""
    start, unravel = ravel_pytree(tiny.params)

    def proximal(params):
        return 0.1 * jnp.sum((ravel_pytree(params)[0] - start) ** 2)

    problem = Problem(tiny.outputs, tiny.loss, tiny.sample_labels, proximal, tiny.taps)
    domains = [tiny.examples(c, seed=j, tilt=2 * j) for j, c in enumerate(COUNTS)]
    references = [tiny.examples(HELD_OUT, seed=10 + i, tilt=t) for i, t in enumerate((0, 2, 3))]
    whole = {name: np.concatenate([d[name] for d in domains]) for name in domains[0]}
    domain_B = np.repeat(np.arange(len(COUNTS)), COUNTS)

    def objective(theta, counts_n):
        l_B, w_B = problem.example_loss(unravel(theta), whole)
        counts_B = counts_n[domain_B]
        return counts_B @ l_B / (counts_B @ w_B) + proximal(unravel(theta))

    def reference_losses(theta):
        pairs = [problem.example_loss(unravel(theta), batch) for batch in references]
        return jnp.stack([l_B.sum() / w_B.sum() for l_B, w_B in pairs])

    samples = {
        "domains": {
            f"d{j}": Sample(tiny.batches(x, SIZE), len(x["ids"])) for j, x in enumerate(domains)
        },
        "references": {f"r{i}": Sample([x], HELD_OUT) for i, x in enumerate(references)},
        "curvature": tiny.batches(whole, SIZE),
    }
    return problem, start, unravel, objective, jax.jit(reference_losses), samples


@pytest.fixture
def found(tiny):
    """The matrix at θ*, the same without centring, the truth, and the smallest eigenvalue."""
    problem, start, unravel, objective, reference_losses, samples = study(tiny)
    value, gradient, hessian = map(
        jax.jit, (objective, jax.grad(objective), jax.hessian(objective))
    )

    def optimum(theta, counts):
        theta = optimize.minimize(
            value, theta, counts, jac=gradient, hess=hessian, method="trust-exact"
        ).x
        for _ in range(3):
            theta = theta - np.linalg.solve(hessian(theta, counts), gradient(theta, counts))
        assert np.linalg.norm(gradient(theta, counts)) < 1e-8
        return theta

    ones = np.ones(len(COUNTS))
    theta = optimum(np.asarray(start), ones)
    slopes = [
        (reference_losses(optimum(theta, ones + h)) - reference_losses(optimum(theta, ones - h)))
        / (2 * CHANGE)
        for h in CHANGE * np.eye(len(COUNTS))
    ]

    def matrix(centred):
        return influence_matrix(
            problem,
            unravel(jnp.asarray(theta)),
            **samples,
            estimator="hessian_cg",
            damping=0,
            damping_mode="absolute",
            tolerance=1e-10,
            iterations=400,
            centred=centred,
        )

    smallest = np.linalg.eigvalsh(hessian(theta, ones))[0]
    return matrix(True), matrix(False), np.stack(slopes, axis=1), smallest


def test_hessian_cg_predicts_retraining(found):
    matrix, uncentred, truth, smallest = found
    assert smallest > 0.05
    assert matrix.damping == 0
    assert matrix.solve_residual.max() < 1e-9

    def error(predicted):
        return np.linalg.norm(predicted - truth) / np.linalg.norm(truth)

    assert error(matrix.matrix) < 0.02
    # Without the derivative of the normaliser it is off by 31 %.
    assert error(uncentred.matrix) > 0.2
    # The domains compete: every one helps a reference and harms another.
    assert np.all((truth.min(axis=0) < 0) & (truth.max(axis=0) > 0))
