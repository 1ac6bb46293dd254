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


@jax.jit
def fingerprint(a: Tree) -> jax.Array:
    """uint32[leaves, 2] that differs, but for one case in 2⁶⁴, when any bit of the leaves does.

    Sums of a mixed hash of every 32 bits and their position. Sums of integers do not depend on the
    order, so the same values give the same result on every mesh, and no array has to be gathered.
    """
    return jnp.stack([_hashed(leaf) for leaf in jax.tree.leaves(a)])


def _hashed(x: jax.Array) -> jax.Array:
    """uint32[2] of one array."""
    if x.dtype == jnp.bool_:
        bits = x.astype(jnp.uint32)
    elif x.dtype.itemsize < 4:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)  # 64 bits become a last axis of two
    position = jnp.zeros((), jnp.uint32)
    for axis in range(bits.ndim):
        step = np.uint32(math.prod(bits.shape[axis + 1 :]) % 2**32)
        position += step * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    lanes = []
    for salt in (0x9E3779B9, 0x7FEB352D):
        h = _mixed(bits ^ _mixed(position + np.uint32(salt)))
        lanes.append(jnp.sum(h, dtype=jnp.uint32))
    return jnp.stack(lanes)


def _mixed(h: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser: every bit in decides about every bit out."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * np.uint32(factor)
    return h ^ (h >> 16)


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
