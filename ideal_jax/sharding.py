"""Where arrays live: the mesh, the logical axes and every rule that joins them.

The same program runs on one CPU device, one GPU host and a pod: only the mesh differs. Arrays are
born in their shardings (``jit(init, out_shardings=...)``) and XLA's partitioner does the rest.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ideal_jax.errors import UserError

AXES = ("replica", "fsdp", "tensor")

# Logical axis of a parameter or activation -> mesh axes it is split over.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": ("replica", "fsdp"),
    "sequence": None,  # a mesh axis "context" would go here: rows longer than one device holds
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "layers": None,
    # Of the loss: logits are split by entry as far as it goes, and the rows come to the entries.
    "loss_batch": "replica",
    "loss_vocab": ("tensor", "fsdp"),
    None: None,
}


def make_mesh(
    *,
    replica: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    slices: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh ``replica × fsdp × tensor``.

    Args:
      replica: copies of the parameters (data parallel only).
      fsdp: ways the parameters and the batch are split.
      tensor: ways each matrix and the vocabulary are split.
      At most one of them may be -1: whatever devices are left.
      slices: groups of devices with a fast network inside and a slow one between. ``replica`` is
        split over them, so that only gradients cross the slow one.
      devices: by default all of all processes; those of a topology description do as well.

    Raises:
      UserError: the product is not the number of devices, or the slices are others.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"replica": replica, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and known > 0 and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if len(free) > 1 or math.prod(sizes.values()) != len(devices) or min(sizes.values()) < 1:
        asked = " × ".join(f"mesh.{name}={size}" for name, size in sizes.items())
        raise UserError(f"{asked} does not cover the {len(devices)} devices; -1 takes what is left")
    if slices < 1 or sizes["replica"] % slices:
        raise UserError(
            f"mesh.slices={slices} does not divide mesh.replica={sizes['replica']}: the copies of "
            "the parameters are shared out over the slices"
        )
    arranged = _arranged(devices, tuple(sizes.values()), slices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(devices: list[Any], shape: tuple[int, ...], slices: int) -> np.ndarray:
    """The devices in the order in which neighbours on the mesh are near each other."""
    groups = {getattr(device, "slice_index", 0) for device in devices}
    if devices[0].platform == "tpu" and len(groups) != slices:
        raise UserError(
            f"mesh.slices={slices}, but the {len(devices)} devices are in {len(groups)} slices; "
            f"set mesh.slices={len(groups)}"
        )
    if slices == 1 or len(groups) != slices:
        # Without a network of their own, slices are consecutive processes: the outermost axis
        # is replica, which has them in this order already.
        ordered = sorted(devices, key=lambda d: d.process_index)
        return mesh_utils.create_device_mesh(shape, ordered, allow_split_physical_axes=True)
    inner, outer = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, allow_split_physical_axes=True
    )


def spec(*names: str | None) -> PartitionSpec:
    """The partition of an array whose dimensions have these logical names."""
    return PartitionSpec(*(RULES[name] for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Fixes the layout of an activation; does nothing outside ``jax.set_mesh``."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*names))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Shardings of the abstract parameters that ``jax.eval_shape(model.init, ...)`` gives.

    Raises:
      UserError: a dimension is not divisible by its mesh axis.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        partition = spec(*leaf.names) if isinstance(leaf, nn.Partitioned) else PartitionSpec()
        shape = (leaf.value if isinstance(leaf, nn.Partitioned) else leaf).shape
        for size, axis in zip(shape, partition, strict=False):
            ways = mesh.shape[axis] if isinstance(axis, str) else 1
            if size % ways:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"mesh.{axis}={ways} does not divide the dimension {size} of {name}"
                )
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(
        sharding, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )


def like_parameters(mesh: Mesh, abstract: Any, shardings: Any) -> Any:
    """Shardings for a tree (an optimizer state) holding copies of the parameter tree.

    A leaf gets the sharding of the parameter whose path ends its own and whose shape it has;
    everything else (counters) is replicated.
    """
    known = jax.tree_util.tree_leaves_with_path(shardings)

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        for suffix, found in known:
            if path[-len(suffix) :] == suffix and len(found.spec) <= len(leaf.shape):
                return found
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def batch_ways(mesh: Mesh) -> int:
    """How many ways the rows of a batch are split."""
    return mesh.shape["replica"] * mesh.shape["fsdp"]


def local_rows(mesh: Mesh, rows: int) -> tuple[int, int]:
    """The half-open range of a batch's rows that this process must supply."""
    index = NamedSharding(mesh, spec("batch")).addressable_devices_indices_map((rows,))
    pieces = [piece[0].indices(rows) for piece in index.values() if piece is not None]
    return min(start for start, _, _ in pieces), max(stop for _, stop, _ in pieces)


def place(mesh: Mesh, batch: Mapping[str, np.ndarray], rows: int | None = None) -> dict[str, Any]:
    """Puts a host batch on the mesh, rows split over ``replica`` and ``fsdp``.

    Args:
      mesh: the mesh.
      batch: arrays whose first axis is this process's rows (``local_rows``), or all of them.
      rows: rows of the whole batch; by default those of ``batch`` (one process, or every process
        holding the same full batch).
    """
    sharding = NamedSharding(mesh, spec("batch"))

    def put(local: np.ndarray) -> jax.Array:
        total = local.shape[0] if rows is None else rows
        low = 0 if rows is None else local_rows(mesh, total)[0]

        def piece(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            return local[start - low : stop - low]

        return jax.make_array_from_callback((total, *local.shape[1:]), sharding, piece)

    return {name: put(np.asarray(array)) for name, array in batch.items()}


def fetch(tree: Any) -> Any:
    """NumPy copies of arrays that may be spread over processes (a collective: all must call)."""

    def get(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            everywhere = replicated(x.sharding.mesh)  # type: ignore[attr-defined]
            x = jax.jit(lambda a: a, out_shardings=everywhere)(x)
        return np.asarray(x)

    return jax.tree.map(get, tree)


def born(mesh: Mesh, make: Callable[..., Any], shardings: Any, *args: Any) -> Any:
    """Runs ``make(*args)`` under jit with its results created directly in ``shardings``."""
    with jax.set_mesh(mesh):
        return jax.jit(make, out_shardings=shardings)(*args)
