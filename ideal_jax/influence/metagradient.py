"""The exact derivative of a finished training run with respect to domain weights.

With domain j counting 1 + β_j in every step (each step divided by its weighted count), the run ends
in θ_T(β). Here ∂Q_i(θ_T)/∂β_j comes from differentiating the steps that were really done: the
optimizer, its schedule, clipping and early stop included. No curvature is approximated, no optimum
assumed.

    forward   t_j = dθ_T/dβ_j is carried along with the run, n tangents beside each state; one pass
              over the references then gives every A_ij with the references' part of its error
    reverse   ∇Q_i is pulled back through the steps, R cotangents; states are kept every √T steps
              and the others computed again

Cost in training runs, a step being a forward and a backward pass of twice its price: forward
2 + 2n, reverse 4 + 4R; memory: n states forward, R + 2√T states in reverse. A replay that does not
end in the stored parameters, bit for bit, is refused: it would differentiate another run.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax import trees
from ideal_jax.errors import UserError
from ideal_jax.influence.passes import Placement, stack
from ideal_jax.influence.problem import Batch, LossFn, Progress, Sample, Tree, silent
from ideal_jax.influence.ratio import from_reference
from ideal_jax.influence.scores import example_scores, mean_gradient
from ideal_jax.mixture.state import InfluenceMatrix

State = Tree
Step = Callable[[State, Batch], tuple[State, Any]]
Weigh = Callable[[Batch, jax.Array], Batch]


class Trajectory(NamedTuple):
    """A finished training run, as something to do again.

    Attributes:
      start: the state before the first step, a pytree of arrays.
      step: ``(state, batch) -> (state, anything)``, pure, as it was trained with.
      weigh: ``(batch, weights_n) -> batch``: the weights of domain j's examples times weights_n[j];
        the batch unchanged when all are 1.
      batches: the batch of every step.
      params: ``state -> params``, the parameters inside a state.
      final: the parameters that the run ended with.
      domains: the n names.
    """

    start: State
    step: Step
    weigh: Weigh
    batches: Sequence[Batch]
    params: Callable[[State], Tree]
    final: Tree
    domains: tuple[str, ...]


def runs(mode: str, domains: int, references: int) -> float:
    """Cost of a replay in training runs."""
    return {"forward": 2.0 + 2 * domains, "reverse": 4.0 + 4 * references}[mode]


def states(mode: str, steps: int, domains: int, references: int) -> float:
    """Memory of a replay in training states, beside those of the run itself."""
    return {"forward": float(domains), "reverse": references + 2.0 * math.sqrt(steps)}[mode]


class Replayed(NamedTuple):
    """The derivative A_ij = ∂Q_i(θ_T)/∂β_j, float64[R, n], and what came with it."""

    matrix: np.ndarray
    variance_reference: np.ndarray | None  # float64[R, n]; reverse mode has none
    reference_loss: np.ndarray  # float64[R], Q_i


def forward(
    trajectory: Trajectory,
    loss_fn: LossFn,
    references: Mapping[str, Sample],
    *,
    progress: Progress = silent,
) -> Replayed:
    """All A_ij by n tangents carried along the run.

    Raises:
      UserError: the replay ends elsewhere than the run did.
    """
    step = jax.jit(trajectory.step)
    state, total = trajectory.start, len(trajectory.batches)
    placement = Placement.of(_moving(state)).stacked()
    n = len(trajectory.domains)
    tangents = stack([trees.zeros_like(_moving(state))] * n, placement)
    for number, batch in enumerate(trajectory.batches):
        tangents = _push(trajectory.step, trajectory.weigh, placement, state, tangents, batch)
        state, _ = step(state, batch)
        progress("replay", number + 1, total)
    params = _same(trajectory, state)
    along = jax.vmap(lambda t: _params_tangent(trajectory, state, t))(tangents)
    rows, losses = [], []
    for sample in references.values():
        scores = example_scores(
            loss_fn, params, along, sample, phase="reference scores", progress=progress
        )
        rows.append(from_reference(sample, scores))
        losses.append(mean_gradient(loss_fn, params, sample).loss)
    return Replayed(
        np.stack([row.matrix for row in rows]),
        np.stack([row.variance for row in rows]),
        np.array(losses),
    )


def reverse(
    trajectory: Trajectory,
    loss_fn: LossFn,
    references: Mapping[str, Sample],
    *,
    progress: Progress = silent,
) -> Replayed:
    """All A_ij by R cotangents pulled back through the run, segment by segment.

    Raises:
      UserError: the replay ends elsewhere than the run did.
    """
    step = jax.jit(trajectory.step)
    total = len(trajectory.batches)
    length = max(1, math.isqrt(total))
    starts: list[State] = []
    state = trajectory.start
    for number, batch in enumerate(trajectory.batches):
        if number % length == 0:
            starts.append(state)
        state, _ = step(state, batch)
        progress("replay", number + 1, 3 * total)
    params = _same(trajectory, state)
    means = [mean_gradient(loss_fn, params, sample) for sample in references.values()]
    placement = Placement.of(_moving(state)).stacked()
    cotangents = stack(
        [_params_cotangent(trajectory, state, mean.gradient) for mean in means], placement
    )
    matrix: Any = 0.0
    done = total
    for number in reversed(range(len(starts))):
        first = number * length
        last = min(first + length, total)
        states = [starts.pop()]
        for k in range(first, last - 1):
            states.append(step(states[-1], trajectory.batches[k])[0])
        for k in reversed(range(first, last)):
            by_weight, cotangents = _pull(
                trajectory.step,
                trajectory.weigh,
                len(trajectory.domains),
                placement,
                states.pop(),
                cotangents,
                trajectory.batches[k],
            )
            matrix = matrix + np.asarray(by_weight, np.float64)
            done += 2
            progress("replay", done, 3 * total)
    return Replayed(matrix, None, np.array([mean.loss for mean in means]))


def metagradient_matrix(
    replayed: Replayed,
    *,
    references: tuple[str, ...],
    domains: tuple[str, ...],
    shares: np.ndarray,
    weights: Sequence[float],
) -> InfluenceMatrix:
    """A replay's result as an influence matrix.

    There is no sampling of training examples, so the error is the references' alone (0 in reverse
    mode, which does not measure it), and no damping and no solve. Centring is built in: weighing
    all domains alike changes no step, so how much "train more" there was is not known (NaN).

    Raises:
      UserError: a derivative is not finite.
    """
    matrix, v = replayed.matrix, np.asarray(weights)
    if not np.isfinite(matrix).all():
        i, j = np.argwhere(~np.isfinite(matrix))[0]
        raise UserError(
            f"metagradient: the derivative of reference '{references[i]}' by domain '{domains[j]}'"
            " is not finite: the run's own derivative overflows; train fewer steps or choose"
            " another influence.estimator"
        )
    none = np.zeros_like(matrix)
    variance = none if replayed.variance_reference is None else replayed.variance_reference
    return InfluenceMatrix(
        references=references,
        domains=domains,
        matrix=matrix,
        stderr=np.sqrt(variance),
        alpha=v @ matrix,
        alpha_stderr=np.sqrt(v**2 @ variance),
        stderr_train=none,
        stderr_reference=np.sqrt(variance),
        common_mode=math.nan,
        shares=shares,
        examples_used=0,
        estimator="metagradient",
        damping=0.0,
        damping_mode="absolute",
        damping_value=0.0,
        solve_residual=np.zeros(len(references)),
        centred=True,
    )


def _same(trajectory: Trajectory, state: State) -> Tree:
    params = trajectory.params(state)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(trajectory.final), strict=True)
    if not all(bool(jnp.array_equal(a, b)) for a, b in pairs):
        apart = float(trees.norm(jax.tree.map(jnp.subtract, params, trajectory.final)))
        raise UserError(
            "metagradient: the replay does not end in the stored parameters (distance"
            f" {apart:.3g}); replay on the devices, mesh and versions that the run was trained with"
        )
    return params


def _moving(state: State) -> list[jax.Array]:
    """The leaves that have derivatives; counters have none."""
    return [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _with(state: State, moving: Sequence[jax.Array]) -> State:
    """``state`` with those leaves replaced."""
    leaves, treedef = jax.tree.flatten(state)
    new = iter(moving)
    return jax.tree.unflatten(
        treedef, [next(new) if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in leaves]
    )


def _weighted_step(
    step: Step, weigh: Weigh, state: State, batch: Batch
) -> Callable[[jax.Array, list[jax.Array]], list[jax.Array]]:
    """(weights_n, moving leaves) -> moving leaves one step later."""
    return lambda weights_n, moving: _moving(step(_with(state, moving), weigh(batch, weights_n))[0])


@functools.partial(
    jax.jit, static_argnames=("step", "weigh", "placement"), donate_argnames=("tangents",)
)
def _push(
    step: Step, weigh: Weigh, placement: Placement, state: State, tangents: Tree, batch: Batch
) -> Tree:
    run, moving = _weighted_step(step, weigh, state, batch), _moving(state)
    n = jax.tree.leaves(tangents)[0].shape[0]
    ones = jnp.ones(n, moving[0].dtype)

    def one(e: jax.Array, tangent: list[jax.Array]) -> list[jax.Array]:
        return jax.jvp(run, (ones, moving), (e, tangent))[1]

    return placement.like(jax.vmap(one)(jnp.eye(n, dtype=ones.dtype), tangents))


@functools.partial(
    jax.jit, static_argnames=("step", "weigh", "n", "placement"), donate_argnames=("cotangents",)
)
def _pull(
    step: Step,
    weigh: Weigh,
    n: int,
    placement: Placement,
    state: State,
    cotangents: Tree,
    batch: Batch,
) -> tuple[jax.Array, Tree]:
    run, moving = _weighted_step(step, weigh, state, batch), _moving(state)
    _, pull = jax.vjp(run, jnp.ones(n, moving[0].dtype), moving)
    by_weight, before = jax.vmap(pull)(cotangents)
    return placement.replicated(by_weight), placement.like(before)


def _params_tangent(trajectory: Trajectory, state: State, tangent: list[jax.Array]) -> Tree:
    """The parameters' part of a tangent of the state."""
    inside = lambda moving: trajectory.params(_with(state, moving))  # noqa: E731
    return jax.jvp(inside, (_moving(state),), (tangent,))[1]


def _params_cotangent(trajectory: Trajectory, state: State, gradient: Tree) -> list[jax.Array]:
    """A cotangent of the state that is ``gradient`` at its parameters and 0 elsewhere."""
    inside = lambda moving: trajectory.params(_with(state, moving))  # noqa: E731
    return jax.vjp(inside, _moving(state))[1](gradient)[0]
