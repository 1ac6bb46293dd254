import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax.influence import conjugate_gradients


def system(size=12, count=3, spread=1e3, seed=0):
    """A dense positive definite matrix on trees {"a": [4], "b": [2, 4]} and stacked sides."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    matrix = basis @ np.diag(np.geomspace(1, spread, size)) @ basis.T
    rhs = rng.normal(size=(count, size))

    def split(x):
        return {"a": jnp.asarray(x[:, :4]), "b": jnp.asarray(x[:, 4:].reshape(-1, 2, 4))}

    def join(tree):
        return np.concatenate([tree["a"], np.asarray(tree["b"]).reshape(-1, 8)], axis=1)

    return matrix, rhs, split, join


def test_solves_each_side_to_the_tolerance_and_measures_it():
    matrix, rhs, split, join = system()
    solved = conjugate_gradients(
        lambda t: split(join(t) @ matrix), split(rhs), tolerance=1e-6, iterations=100
    )
    truth = np.linalg.norm(join(solved.solutions) @ matrix - rhs, axis=1) / np.linalg.norm(
        rhs, axis=1
    )
    assert solved.residuals.max() <= 1.01e-6
    np.testing.assert_allclose(solved.residuals, truth, rtol=1e-6)
    np.testing.assert_allclose(join(solved.solutions), np.linalg.solve(matrix, rhs.T).T, rtol=1e-3)


def test_converged_side_is_frozen_while_the_others_go_on():
    matrix, rhs, split, join = system()
    rhs[0] = np.linalg.eigh(matrix)[1][:, 3]  # an eigenvector: one product solves it

    def run(iterations):
        return conjugate_gradients(
            lambda t: split(join(t) @ matrix), split(rhs), tolerance=1e-8, iterations=iterations
        )

    early, late = run(2), run(100)
    assert late.iterations[0] == 1
    assert late.iterations[1:].min() > 5
    np.testing.assert_array_equal(join(early.solutions)[0], join(late.solutions)[0])
    assert late.residuals.max() < 1e-7 < early.residuals.max()


def test_zero_side_gives_zero():
    matrix, rhs, split, join = system()
    rhs[1] = 0
    solved = conjugate_gradients(
        lambda t: split(join(t) @ matrix), split(rhs), tolerance=1e-6, iterations=100
    )
    assert np.all(join(solved.solutions)[1] == 0)
    assert solved.residuals[1] == 0
    assert solved.iterations[1] == 0


def test_preconditioned_solution_is_the_same_and_quicker():
    matrix, rhs, split, join = system(spread=1e6)
    nearly = np.linalg.inv(matrix + 0.01 * np.diag(np.diag(matrix)))

    def multiply(tree):
        return split(join(tree) @ matrix)

    plain = conjugate_gradients(multiply, split(rhs), tolerance=1e-10, iterations=300)
    quick = conjugate_gradients(
        multiply,
        split(rhs),
        tolerance=1e-10,
        iterations=300,
        precondition=lambda t: split(join(t) @ nearly),
    )
    np.testing.assert_allclose(join(plain.solutions), join(quick.solutions), rtol=1e-4, atol=1e-9)
    assert quick.iterations.max() < plain.iterations.min()


def test_zero_tolerance_runs_all_the_iterations():
    matrix, rhs, split, join = system()
    solved = conjugate_gradients(
        lambda t: split(join(t) @ matrix), split(rhs), tolerance=0, iterations=7
    )
    assert solved.iterations.tolist() == [7, 7, 7]


def test_negative_curvature_stops_a_side_and_shows_in_its_residual():
    matrix, rhs, split, join = system()
    matrix = matrix - 400 * np.eye(12)
    solved = conjugate_gradients(
        lambda t: split(join(t) @ matrix), split(rhs), tolerance=1e-6, iterations=50
    )
    assert solved.residuals.max() > 1e-3
    assert np.all(np.isfinite(join(solved.solutions)))


def test_given_sides_survive():
    matrix, rhs, split, join = system()
    given = split(rhs)
    conjugate_gradients(lambda t: split(join(t) @ matrix), given, tolerance=1e-6, iterations=50)
    np.testing.assert_array_equal(join(jax.tree.map(np.asarray, given)), rhs)
