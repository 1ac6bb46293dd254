"""What every curvature estimator is: fitted to batches, then solved with."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from ideal_jax.influence.options import Options
from ideal_jax.influence.problem import Batch, LossFn, Problem, Progress, Tree, silent
from ideal_jax.influence.solve import Solved


class Setting(NamedTuple):
    """What an estimator is fitted to.

    Attributes:
      problem: a ``Problem``, or a plain loss where the estimator needs no more.
      params: where the curvature is taken.
      batches: the examples it is taken over, in the mixture's proportions.
      key: for sampled labels and probes.
      options: damping, Fisher and solver.
      second_moment: v̂, the optimizer's bias-corrected mean of squared gradients, like ``params``;
        only "adam" reads it.
    """

    problem: Problem | LossFn
    params: Tree
    batches: Sequence[Batch]
    key: jax.Array
    options: Options
    second_moment: Tree | None = None
    progress: Progress = silent


class Fitted(NamedTuple):
    """Curvature fitted to batches.

    Attributes:
      state: what ``solve`` takes.
      damping: absolute λ; of block estimators the mean over the parameters.
      block_damping: λ of each block by parameter name, one per scanned layer.
      smallest_eigenvalue: of H before damping, where it was looked for.
      left_out: names of the parameters along which no solution goes: right-hand sides and
        solutions have None for them.
    """

    state: Any
    damping: float
    block_damping: dict[str, tuple[float, ...]]
    smallest_eigenvalue: float | None = None
    left_out: frozenset[str] = frozenset()


class Solve(Protocol):
    """How an estimator solves."""

    def __call__(self, state: Any, stacked: Tree, /, *, progress: Progress = silent) -> Solved:
        """(H + λI)⁻¹ g for every g on the leading axis of ``stacked``."""


class Estimator(NamedTuple):
    """One approximation of the curvature.

    Attributes:
      fit: the curvature in a setting.
      solve: with what ``fit`` gives.
      parts: ``(state, solutions) -> {name: part}`` where solutions have parts: "all" is what
        counts, of the others the share of α is reported.
      domain_mean: whether a domain counts by its mean instead of its sum, which drops its size.
    """

    fit: Callable[[Setting], Fitted]
    solve: Solve
    parts: Callable[[Any, Tree], dict[str, Tree]] | None = None
    domain_mean: bool = False
