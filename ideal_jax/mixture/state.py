"""The values that cross floors: how much of each domain, and what a little more of it does."""

from typing import NamedTuple

import numpy as np

# Of a solve's residual ‖(H+λ)s − g‖ / ‖g‖. From 1 on, less what rounding takes from it, the
# solution is no better than none, and nothing may be decided by it.
FAILED_RESIDUAL = 0.999
# Above this a matrix is too rough to be shown without a word.
ROUGH_RESIDUAL = 0.1


class MixtureState(NamedTuple):
    """The mixture of one round.

    Attributes:
      names: the n domains, in a fixed order.
      available: int64[n], distinct examples of each domain.
      counts: int64[n], examples in this round's multiset.
      beta: float64[n], the relative change that produced this round (0 in round 0).
      round: 0 for the given mixture.
      volume: float64[n], examples before rounding, which the next update starts from: changes
        smaller than one example add up over rounds. None: the counts themselves.
    """

    names: tuple[str, ...]
    available: np.ndarray
    counts: np.ndarray
    beta: np.ndarray
    round: int
    volume: np.ndarray | None = None

    @property
    def unrounded(self) -> np.ndarray:
        """float64[n]: ``volume``, or the counts where nothing was rounded."""
        return np.asarray(self.counts if self.volume is None else self.volume, np.float64)


class InfluenceMatrix(NamedTuple):
    """Domain influence A_ij = ∂Q_i/∂β_j at β = 0, with error bars (design §2).

    Q_i is in nats per unit of weight (per token, or per example with the "example" reduction);
    β_j is the relative change of domain j's volume. A negative A_ij: more of j improves i.

    Attributes:
      references: R names.        domains: n names.
      matrix: float64[R, n].      stderr: float64[R, n], var_train + var_reference under the root.
      alpha: float64[n] = vᵀA.    alpha_stderr: float64[n].
      stderr_train, stderr_reference: float64[R, n], the two parts of ``stderr``.
      common_mode: |Σ_j α_j| / Σ_j |α_j| before centring, in [0, 1]: 1 means "train more".
      shares: float64[n], W_j / W.
      examples_used: training examples scored.
      estimator, damping: the curvature and the absolute λ added to it.
      damping_mode, damping_value: what was asked for.
      solve_residual: float64[R], ‖(H+λ)s − g‖ / ‖g‖.
      centred: whether the derivative of the normaliser is included.
    """

    references: tuple[str, ...]
    domains: tuple[str, ...]
    matrix: np.ndarray
    stderr: np.ndarray
    alpha: np.ndarray
    alpha_stderr: np.ndarray
    stderr_train: np.ndarray
    stderr_reference: np.ndarray
    common_mode: float
    shares: np.ndarray
    examples_used: int
    estimator: str
    damping: float
    damping_mode: str
    damping_value: float
    solve_residual: np.ndarray
    centred: bool
