"""What every curvature estimator is: fitted to batches, then solved with."""

import dataclasses
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
      block_curvature: mean curvature of each block, as ``block_damping``; {} where the estimator
        has no blocks or multiplies by them.
    """

    state: Any
    damping: float
    block_damping: dict[str, tuple[float, ...]]
    smallest_eigenvalue: float | None = None
    left_out: frozenset[str] = frozenset()
    block_curvature: dict[str, tuple[float, ...]] = {}  # noqa: RUF012 (never changed)


class Solve(Protocol):
    """How an estimator solves."""

    def __call__(self, state: Any, stacked: Tree, /, *, progress: Progress = silent) -> Solved:
        """(H + λI)⁻¹ g for every g on the leading axis of ``stacked``."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """What an estimator takes, said once: prices, plans and checks read it here.

    Attributes:
      kronecker: passes over the curvature examples with taps on the dense layers: 1 for the
        factors, 2 with the eigenvalues of every example's gradient in their basis.
      batch_gradients: passes that take a batch's gradient into that basis.
      diagonal: the leaves of which a pass squares every example's gradient: "" none, "kept" those
        outside the taps if ``Options.uncovered`` keeps them, "uncovered" these whatever it says,
        or "all".
      product: the exact curvature that conjugate gradients multiply by, up to
        ``Options.iterations`` times for each right-hand side and once for its residual:
        "gauss_newton", "hessian", or "" for a solution in closed form.
      smallest_eigenvalue: it is looked for by ``Options.iterations`` products with one vector.
      rotations: how often a right-hand side goes into the eigenbasis and back: with ``product``
        each time, and for its preconditioner.
      covered: when gradients and solutions have the tapped kernels alone: "" never, "drop" if
        ``Options.uncovered`` says so, "always".
      parts: whether solutions have parts that are scored beside them.
      second_moment: v̂ of the optimizer.
      run: the training, not a checkpoint: nothing else of this list.
    """

    kronecker: int = 0
    batch_gradients: int = 0
    diagonal: str = ""
    product: str = ""
    smallest_eigenvalue: bool = False
    rotations: int = 0
    covered: str = ""
    parts: bool = False
    second_moment: bool = False
    run: bool = False

    @property
    def training(self) -> bool:
        """Whether a checkpoint does not have what it takes."""
        return self.second_moment or self.run

    def squares(self, uncovered: str) -> bool:
        """Whether there is a pass of squared gradients with this ``Options.uncovered``."""
        return bool(self.diagonal) and not (self.diagonal == "kept" and uncovered == "drop")

    def covered_only(self, uncovered: str) -> bool:
        """Whether gradients and solutions leave out what is outside the tapped layers."""
        return self.covered == "always" or (self.covered == "drop" and uncovered == "drop")

    def trace(self, options: Any) -> bool:
        """Whether the mean eigenvalue of the Gauss-Newton matrix is estimated for λ."""
        return bool(self.product) and options.damping_mode == "relative" and options.damping > 0


class Estimator(NamedTuple):
    """One approximation of the curvature.

    Attributes:
      needs: what it takes.
      fit: the curvature in a setting.
      solve: with what ``fit`` gives.
      parts: ``(state, solutions) -> {name: part}`` where solutions have parts: "all" is what
        counts, of the others the share of α is reported.
      domain_mean: whether a domain counts by its mean instead of its sum, which drops its size.
    """

    needs: Needs
    fit: Callable[[Setting], Fitted]
    solve: Solve
    parts: Callable[[Any, Tree], dict[str, Tree]] | None = None
    domain_mean: bool = False
