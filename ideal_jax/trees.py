"""Algebra on pytrees of arrays: what a vector space of parameters needs, nothing more."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def dot(a: Tree, b: Tree) -> jax.Array:
    """Inner product ⟨a, b⟩ over all leaves, accumulated in at least float32."""
    products = jax.tree.map(lambda x, y: jnp.sum(_wide(x) * _wide(y)), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))


def norm(a: Tree) -> jax.Array:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(dot(a, a))


def add(a: Tree, b: Tree, scale: Any = 1.0) -> Tree:
    """``a + scale * b``."""
    return jax.tree.map(lambda x, y: x + scale * y, a, b)


def scale(a: Tree, factor: Any) -> Tree:
    """``factor * a``."""
    return jax.tree.map(lambda x: factor * x, a)


def zeros_like(a: Tree, dtype: Any = None) -> Tree:
    """A tree of zeros with the shapes (and shardings) of ``a``."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), a)


def size(a: Tree) -> int:
    """Number of scalars P in the tree."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(a))


def digest(a: Tree) -> str:
    """SHA-256 of all leaves with their paths, dtypes and shapes, in tree order."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(a):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)}:{array.dtype}:{array.shape};".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
