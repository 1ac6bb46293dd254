"""Passes over batches, and where their results live on the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ideal_jax.errors import UserError
from ideal_jax.influence.problem import Batch, Progress, Tree, silent


@dataclasses.dataclass(frozen=True)
class Placement:
    """The shardings of a tree's leaves, hashable; none when the tree is not on a mesh."""

    shardings: tuple[NamedSharding, ...] = ()

    @classmethod
    def of(cls, tree: Tree) -> "Placement":
        """The shardings that the (concrete) leaves of ``tree`` have."""
        shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
        named = tuple(s for s in shardings if isinstance(s, NamedSharding))
        return cls(named if len(named) == len(shardings) else ())

    def stacked(self) -> "Placement":
        """The same for trees with a new, unsharded, leading axis."""
        return Placement(
            tuple(NamedSharding(s.mesh, PartitionSpec(None, *s.spec)) for s in self.shardings)
        )

    def like(self, tree: Tree) -> Tree:
        """``tree`` (of the structure this was taken from), constrained to these shardings."""
        if not self.shardings:
            return tree
        leaves, treedef = jax.tree.flatten(tree)
        placed = map(jax.lax.with_sharding_constraint, leaves, self.shardings)
        return jax.tree.unflatten(treedef, list(placed))

    def spelt(self, tree: Tree) -> Tree:
        """``tree``, placed like this already, with its shardings written as these are.

        On one device every sharding is the same, and a compiled function may name any of them; the
        next one would be compiled again for each name.
        """
        if self.mesh is None or self.mesh.size > 1:
            return tree
        leaves, treedef = jax.tree.flatten(tree)
        return jax.tree.unflatten(treedef, list(map(jax.device_put, leaves, self.shardings)))

    def leaf(self, index: int, x: jax.Array) -> jax.Array:
        """One leaf, by its index in tree order, constrained to its sharding."""
        if not self.shardings:
            return x
        return jax.lax.with_sharding_constraint(x, self.shardings[index])

    @property
    def mesh(self) -> Mesh | None:
        """The mesh, if there is one."""
        return self.shardings[0].mesh if self.shardings else None  # type: ignore[return-value]

    def spread(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """``x`` split over all devices along an axis, where that divides."""
        place = self.spread_sharding(x.shape, axis)
        if place is None or not any(place.spec):
            return x
        return jax.lax.with_sharding_constraint(x, place)

    def spread_sharding(self, shape: tuple[int, ...], axis: int = -1) -> NamedSharding | None:
        """That of ``spread``: a full copy everywhere where the axis does not divide."""
        mesh = self.mesh
        if mesh is None:
            return None
        if not shape or shape[axis] % mesh.size:
            return NamedSharding(mesh, PartitionSpec())
        names: list[Any] = [None] * len(shape)
        names[axis] = mesh.axis_names
        return NamedSharding(mesh, PartitionSpec(*names))

    def replicated(self, tree: Tree) -> Tree:
        """``tree`` on every device in full, so that every process can read it."""
        if not self.shardings:
            return tree
        return jax.lax.with_sharding_constraint(
            tree, NamedSharding(self.shardings[0].mesh, PartitionSpec())
        )


def accumulate(
    fn: Callable[[Batch], Tree],
    batches: Sequence[Batch],
    *,
    phase: str,
    progress: Progress = silent,
) -> Tree:
    """Σ fn(batch) over the batches, on the devices.

    Raises:
      UserError: there are no batches.
    """
    total: Any = None
    count = len(batches)
    if not count:
        raise UserError(f"no batches for {phase}: give at least one example")
    progress(phase, 0, count)
    for done, batch in enumerate(batches, start=1):
        value = fn(batch)
        total = value if total is None else _add(total, value)
        if done == count:
            jax.block_until_ready(total)
        progress(phase, done, count)
    return total


def wide(x: jax.Array) -> jax.Array:
    """``x`` in at least float32: what sums over examples are kept in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cast_like(tree: Tree, params: Tree) -> Tree:
    """``tree`` in the dtypes of the parameters, as tangents must be."""
    return jax.tree.map(lambda x, p: x.astype(p.dtype), tree, params)


def stack(members: Sequence[Tree], placement: Placement) -> Tree:
    """Trees stacked on a new leading axis; ``placement`` is that of the result."""
    return placement.spelt(_stack(members, placement))


def combine(coefficients: jax.Array | np.ndarray, stacked: Tree, placement: Placement) -> Tree:
    """Linear combinations ``Σ_k coefficients[r, k] stacked[k]``, stacked on r."""
    return placement.spelt(_combine(coefficients, stacked, placement))


def split(stacked: Tree, count: int, placement: Placement) -> tuple[Tree, Tree]:
    """The first ``count`` trees of a stack, and the others."""
    first, others = _split(stacked, count, placement)
    return placement.spelt(first), placement.spelt(others)


@functools.partial(jax.jit, static_argnames="placement")
def _stack(members: Sequence[Tree], placement: Placement) -> Tree:
    return placement.like(jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))


@functools.partial(jax.jit, static_argnames="placement")
def _combine(coefficients: jax.Array | np.ndarray, stacked: Tree, placement: Placement) -> Tree:
    def leaf(x: jax.Array) -> jax.Array:
        c = coefficients.astype(x.dtype)
        return jnp.einsum("rk,k...->r...", c, x, precision=jax.lax.Precision.HIGHEST)

    return placement.like(jax.tree.map(leaf, stacked))


@functools.partial(jax.jit, static_argnames=("count", "placement"))
def _split(stacked: Tree, count: int, placement: Placement) -> tuple[Tree, Tree]:
    first = jax.tree.map(lambda x: x[:count], stacked)
    others = jax.tree.map(lambda x: x[count:], stacked)
    return placement.like(first), placement.like(others)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: Tree, value: Tree) -> Tree:
    return jax.tree.map(jnp.add, total, value)
