"""How well predicted effects agree with measured ones: plain statistics of two matrices."""

from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Agreement(NamedTuple):
    """Prediction against measurement over all entries of a matrix.

    Attributes:
      pearson, spearman: correlations; NaN where one side is constant.
      signs: share of the entries with the same sign.
      clear: entries whose predicted 95 % interval excludes 0.
      clear_signs: share of these with the same sign; NaN when there are none.
      slope: the factor that takes prediction to measurement, least squares through the origin.
    """

    pearson: float
    spearman: float
    signs: float
    clear: int
    clear_signs: float
    slope: float


def agreement(predicted: np.ndarray, stderr: np.ndarray, measured: np.ndarray) -> Agreement:
    """Compares matrices (or vectors) of the same shape."""
    from scipy import stats  # 60 MiB and half a second, which nothing else in influence needs

    x, e, y = (np.ravel(np.asarray(a, np.float64)) for a in (predicted, stderr, measured))
    same = np.sign(x) == np.sign(y)
    clear = np.abs(x) > Z95 * e
    varied = x.size > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return Agreement(
        pearson=float(stats.pearsonr(x, y).statistic) if varied else np.nan,
        spearman=float(stats.spearmanr(x, y).statistic) if varied else np.nan,
        signs=float(same.mean()),
        clear=int(clear.sum()),
        clear_signs=float(same[clear].mean()) if clear.any() else np.nan,
        slope=float(x @ y / (x @ x)) if np.any(x) else np.nan,
    )
