"""The eigendecomposition by blocks against LAPACK's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ideal_jax.influence import eigen


def _with_spectrum(spectrum):
    n = len(spectrum)
    basis, _ = np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))
    return (basis * spectrum) @ basis.T


@pytest.mark.parametrize(
    "spectrum",
    [
        np.logspace(0, -6, 96),
        np.concatenate([np.zeros(40), np.ones(30), np.linspace(1, 2, 23)]),  # 93: padded
        np.linspace(-1, 1, 70),
    ],
    ids=["decades", "degenerate", "indefinite"],
)
def test_a_matrix_is_taken_apart(spectrum):
    matrix = _with_spectrum(spectrum)
    values, vectors = jax.jit(lambda x: eigen.by_blocks(x, block=8))(jnp.float32(matrix))
    values, vectors = np.float64(values), np.float64(vectors)
    np.testing.assert_allclose(values, np.sort(spectrum), atol=2e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(matrix)), atol=3e-6)
    np.testing.assert_allclose((vectors * values) @ vectors.T, matrix, atol=2e-5)


def test_a_matrix_of_zeros_has_a_basis():
    values, vectors = eigen.by_blocks(jnp.zeros((20, 20)), block=4)
    assert not np.any(values)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(20), atol=1e-6)


def test_all_pairs_meet_once_a_sweep():
    order = eigen._next_round(10)
    seats, met = np.arange(10), set()
    for _ in range(9):
        met |= {frozenset(pair) for pair in seats.reshape(-1, 2).tolist()}
        seats = seats[order]
    assert len(met) == 45
    np.testing.assert_array_equal(np.sort(seats), np.arange(10))
