"""Exact curvature as operators: products with trees, and the trace.

The Gauss-Newton matrix (1/W) Σ_x Jᵀ (∇²_out ℓ) J, with J the Jacobian of the model's outputs, is a
jvp through the model, a Hessian product in the outputs and a vjp back; the Hessian (1/W) Σ_x ∇²ℓ is
the jvp of a gradient. Both add ∇²ρ + λI. Nothing of the size of a Jacobian exists, and all vectors
of a product share one forward pass.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ideal_jax import trees
from ideal_jax.influence.passes import Placement, accumulate, cast_like, wide
from ideal_jax.influence.problem import (
    CURVATURE,
    Batch,
    LossFn,
    Problem,
    Progress,
    Tree,
    check_weight,
    example_loss,
    silent,
)

PROBES = 32  # random directions that tell the trace


class GaussNewton(NamedTuple):
    """The damped Gauss-Newton matrix H + λI of a problem over batches.

    Attributes:
      problem, params, batches: what it is the curvature of; batches are read once a product, so
        keep them on the devices.
      weight: W = Σ w over the batches.
      damping: λ, absolute.
    """

    problem: Problem
    params: Tree
    batches: Sequence[Batch]
    weight: float
    damping: float

    def multiply(self, vectors: Tree) -> Tree:
        """(H + λI) v for every v on the leading axis of ``vectors``."""
        placement = Placement.of(self.params)
        total = accumulate(
            lambda batch: product_sum(self.problem, placement, self.params, vectors, batch),
            self.batches,
            phase="curvature product",
        )
        return _finish(
            self.problem, placement, self.params, vectors, total, self.weight, self.damping
        )


class Hessian(NamedTuple):
    """The damped Hessian H + λI of a problem, or of a plain loss, over batches.

    Attributes: as of ``GaussNewton``.
    """

    problem: Problem | LossFn
    params: Tree
    batches: Sequence[Batch]
    weight: float
    damping: float

    def multiply(self, vectors: Tree) -> Tree:
        """(H + λI) v for every v on the leading axis of ``vectors``."""
        placement = Placement.of(self.params)
        loss_fn = example_loss(self.problem)
        total = accumulate(
            lambda batch: hessian_sum(loss_fn, placement, self.params, vectors, batch),
            self.batches,
            phase="curvature product",
        )
        return _finish(
            self.problem, placement, self.params, vectors, total, self.weight, self.damping
        )


def total_weight(problem: Problem | LossFn, params: Tree, batches: Sequence[Batch]) -> float:
    """W = Σ w(x) over the batches.

    Raises:
      UserError: it is 0.
    """
    placement, loss_fn = Placement.of(params), example_loss(problem)
    weight = float(
        accumulate(lambda b: _weight_sum(loss_fn, placement, params, b), batches, phase="curvature")
    )
    check_weight(CURVATURE, weight)
    return weight


def mean_eigenvalue(
    problem: Problem,
    params: Tree,
    batches: Sequence[Batch],
    weight: float,
    *,
    key: jax.Array,
    probes: int = PROBES,
    progress: Progress = silent,
) -> float:
    """trace(GGN) / P by Hutchinson's estimator with Rademacher probes.

    Only forward passes: vᵀGv = (Jv)ᵀ (∇²_out ℓ) (Jv). One probe exists at a time.
    """
    placement = Placement.of(params)
    keys = jax.random.split(key, probes)
    forms = accumulate(
        lambda batch: _quadratic_sums(problem, placement, params, keys, batch),
        batches,
        phase="curvature trace",
        progress=progress,
    )
    return float(jnp.mean(forms)) / weight / trees.size(params)


def regulariser_of(problem: Problem | LossFn) -> Callable[[Tree], jax.Array] | None:
    """ρ, if the problem has one; a plain loss has none."""
    return problem.regulariser if isinstance(problem, Problem) else None


def regulariser_product(problem: Problem | LossFn, params: Tree, vector: Tree) -> Tree:
    """∇²ρ(params) · vector."""
    regulariser = regulariser_of(problem)
    if regulariser is None:
        return trees.zeros_like(vector)
    return jax.jvp(jax.grad(regulariser), (params,), (cast_like(vector, params),))[1]


def random_signs(params: Tree, key: jax.Array) -> Tree:
    """A tree like ``params`` of independent ±1 (Rademacher)."""
    leaves, treedef = jax.tree.flatten(params)
    signs = [
        jax.random.rademacher(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, signs)


@functools.partial(jax.jit, static_argnames=("problem", "placement"))
def product_sum(
    problem: Problem, placement: Placement, params: Tree, vectors: Tree, batch: Batch
) -> Tree:
    """Σ_x Jᵀ(∇²_out ℓ)J v over one batch, for every v on the leading axis of ``vectors``."""
    out, push = jax.linearize(lambda p: problem.outputs(p, batch), params)
    pull = jax.linear_transpose(push, params)

    def product(vector: Tree) -> Tree:
        return pull(_output_product(problem, out, batch, push(cast_like(vector, params))))[0]

    return placement.stacked().like(jax.tree.map(wide, jax.vmap(product)(vectors)))


def _output_product(problem: Problem, out: Tree, batch: Batch, out_dot: Tree) -> Tree:
    """∇²_out Σℓ · out_dot."""
    gradient = jax.grad(lambda o: jnp.sum(problem.loss(o, batch)[0]))
    return jax.jvp(gradient, (out,), (out_dot,))[1]


@functools.partial(jax.jit, static_argnames=("loss_fn", "placement"))
def hessian_sum(
    loss_fn: LossFn, placement: Placement, params: Tree, vectors: Tree, batch: Batch
) -> Tree:
    """Σ_x ∇²ℓ v over one batch, for every v on the leading axis of ``vectors``."""
    gradient = jax.grad(lambda p: jnp.sum(wide(loss_fn(p, batch)[0])))

    def product(vector: Tree) -> Tree:
        return jax.jvp(gradient, (params,), (cast_like(vector, params),))[1]

    return placement.stacked().like(jax.tree.map(wide, jax.vmap(product)(vectors)))


@functools.partial(jax.jit, static_argnames=("problem", "placement"), donate_argnames=("total",))
def _finish(
    problem: Problem | LossFn,
    placement: Placement,
    params: Tree,
    vectors: Tree,
    total: Tree,
    weight: jax.Array,
    damping: jax.Array,
) -> Tree:
    smooth = jax.vmap(lambda v: regulariser_product(problem, params, v))(vectors)
    return placement.stacked().like(
        jax.tree.map(lambda g, h, v: g / weight + h + damping * v, total, smooth, vectors)
    )


@functools.partial(jax.jit, static_argnames=("problem", "placement"))
def _quadratic_sums(
    problem: Problem, placement: Placement, params: Tree, keys: jax.Array, batch: Batch
) -> jax.Array:
    def form(key: jax.Array) -> jax.Array:
        probe = placement.like(random_signs(params, key))
        out, out_dot = jax.jvp(lambda p: problem.outputs(p, batch), (params,), (probe,))
        return trees.dot(out_dot, _output_product(problem, out, batch, out_dot))

    return placement.replicated(jax.lax.map(form, keys))


@functools.partial(jax.jit, static_argnames=("loss_fn", "placement"))
def _weight_sum(loss_fn: LossFn, placement: Placement, params: Tree, batch: Batch) -> jax.Array:
    return placement.replicated(jnp.sum(wide(loss_fn(params, batch)[1])))
