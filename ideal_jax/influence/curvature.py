"""The Gauss-Newton matrix as an operator: products with trees, and its trace.

H + λI = (1/W) Σ_x Jᵀ (∇²_out ℓ) J + ∇²ρ + λI over the curvature batches, with J the Jacobian of
the model's outputs: a jvp through the model, a Hessian product in the outputs, a vjp back. Nothing
of the size of a Jacobian exists, and all vectors of a product share one forward pass.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ideal_jax import trees
from ideal_jax.influence.passes import Placement, accumulate, cast_like, wide
from ideal_jax.influence.problem import Batch, Problem, Progress, Tree, silent


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
            lambda batch: _product_sum(self.problem, placement, self.params, vectors, batch),
            self.batches,
            phase="curvature product",
        )
        return _finish(
            self.problem, placement, self.params, vectors, total, self.weight, self.damping
        )


def total_weight(problem: Problem, params: Tree, batches: Sequence[Batch]) -> float:
    """W = Σ w(x) over the batches."""
    placement = Placement.of(params)
    return float(
        accumulate(lambda b: _weight_sum(problem, placement, params, b), batches, phase="curvature")
    )


def mean_eigenvalue(
    problem: Problem,
    params: Tree,
    batches: Sequence[Batch],
    weight: float,
    *,
    key: jax.Array,
    probes: int = 32,
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


def regulariser_product(problem: Problem, params: Tree, vector: Tree) -> Tree:
    """∇²ρ(params) · vector."""
    if problem.regulariser is None:
        return trees.zeros_like(vector)
    tangent = cast_like(vector, params)
    return jax.jvp(jax.grad(problem.regulariser), (params,), (tangent,))[1]


@functools.partial(jax.jit, static_argnames=("problem", "placement"))
def _product_sum(
    problem: Problem, placement: Placement, params: Tree, vectors: Tree, batch: Batch
) -> Tree:
    out, push = jax.linearize(lambda p: problem.outputs(p, batch), params)
    pull = jax.linear_transpose(push, params)

    def product(vector: Tree) -> Tree:
        return pull(_output_product(problem, out, batch, push(cast_like(vector, params))))[0]

    return placement.stacked().like(jax.tree.map(wide, jax.vmap(product)(vectors)))


def _output_product(problem: Problem, out: Tree, batch: Batch, out_dot: Tree) -> Tree:
    """∇²_out Σℓ · out_dot."""
    gradient = jax.grad(lambda o: jnp.sum(problem.loss(o, batch)[0]))
    return jax.jvp(gradient, (out,), (out_dot,))[1]


@functools.partial(jax.jit, static_argnames=("problem", "placement"), donate_argnames=("total",))
def _finish(
    problem: Problem,
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
    leaves, treedef = jax.tree.flatten(params)

    def form(key: jax.Array) -> jax.Array:
        signs = [
            jax.random.rademacher(k, leaf.shape, leaf.dtype)
            for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ]
        probe = placement.like(jax.tree.unflatten(treedef, signs))
        out, out_dot = jax.jvp(lambda p: problem.outputs(p, batch), (params,), (probe,))
        return trees.dot(out_dot, _output_product(problem, out, batch, out_dot))

    return placement.replicated(jax.lax.map(form, keys))


@functools.partial(jax.jit, static_argnames=("problem", "placement"))
def _weight_sum(problem: Problem, placement: Placement, params: Tree, batch: Batch) -> jax.Array:
    return placement.replicated(jnp.sum(wide(problem.example_loss(params, batch)[1])))
