"""Stacks of trees on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ideal_jax import sharding
from ideal_jax.influence.passes import Placement, combine, split, stack


def test_a_program_on_stacks_is_compiled_once_however_they_were_made():
    """On one device XLA may name any sharding for a result; each name would compile anew."""
    mesh = sharding.make_mesh(replica=1, fsdp=1, tensor=1, slices=1)
    specs = {"a": PartitionSpec("tensor", "fsdp"), "b": PartitionSpec(), "c": PartitionSpec("fsdp")}
    shapes = {"a": (6, 4), "b": (4,), "c": (2, 4, 3)}
    rng = np.random.default_rng(0)
    trees = [
        {
            name: jax.device_put(rng.normal(size=shape), NamedSharding(mesh, specs[name]))
            for name, shape in shapes.items()
        }
        for _ in range(4)
    ]
    placement = Placement.of(trees[0]).stacked()
    twice = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree))
    with jax.set_mesh(mesh):
        stacked = stack(trees[:2], placement)
        made = [stacked, combine(jnp.eye(2), stacked, placement)]
        made += split(stack(trees, placement), 2, placement)
        for tree in made:
            assert Placement.of(tree) == placement
            twice(tree)
    assert twice._cache_size() == 1
    for name in shapes:
        np.testing.assert_array_equal(made[0][name], np.stack([t[name] for t in trees[:2]]))
        np.testing.assert_array_equal(made[0][name], made[1][name])
        np.testing.assert_array_equal(made[3][name], np.stack([t[name] for t in trees[2:]]))
