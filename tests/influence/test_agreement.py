import numpy as np

from ideal_jax.influence.agreement import agreement


def test_statistics_of_a_small_case():
    predicted = np.array([[1.0, -2.0], [3.0, 0.5]])
    measured = np.array([[2.0, -4.0], [6.0, -1.0]])
    found = agreement(predicted, np.full((2, 2), 0.4), measured)
    assert found.signs == 0.75
    assert found.clear == 3  # 0.5 is within 1.96 · 0.4 of zero
    assert found.clear_signs == 1.0
    assert found.spearman == 1.0
    np.testing.assert_allclose(
        found.pearson, np.corrcoef(predicted.ravel(), measured.ravel())[0, 1]
    )
    np.testing.assert_allclose(found.slope, (2 + 8 + 18 - 0.5) / (1 + 4 + 9 + 0.25))


def test_a_constant_side_has_no_correlation():
    found = agreement(np.zeros(3), np.ones(3), np.arange(3.0))
    assert np.isnan(found.pearson)
    assert np.isnan(found.spearman)
    assert np.isnan(found.slope)
    assert np.isnan(found.clear_signs)
    assert found.clear == 0
