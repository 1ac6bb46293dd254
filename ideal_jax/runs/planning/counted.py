"""FLOPs of a traced program, loops included: what XLA's own count leaves out."""

import math
from typing import Any

import jax


def matrix_flops(traced: jax.stages.Traced) -> float:
    """FLOPs of all matrix products of a program over all its devices, 2 a multiply-add.

    The body of a ``scan`` counts as often as it runs, that of a ``while`` once; of a ``cond`` the
    dearest branch. Fused kernels (Pallas) count nothing: they have no products that can be seen.
    """
    return _flops(traced.jaxpr.jaxpr)


def _flops(jaxpr: Any) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        contracted, _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        depth = math.prod(left[axis] for axis in contracted[0])
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
    if name == "pallas_call":
        return 0.0
    if name == "cond":
        return max(_flops(branch.jaxpr) for branch in params["branches"])
    inner = sum(_flops(part) for value in params.values() for part in _jaxprs(value))
    if name == "scan":
        return params["length"] * inner
    if name == "shard_map":  # its shapes are those of one device, of all devices of the mesh
        return params["mesh"].size * inner
    return inner


def _jaxprs(value: Any) -> list[Any]:
    parts = value if isinstance(value, list | tuple) else [value]
    found = [getattr(part, "jaxpr", part) for part in parts]
    return [part for part in found if hasattr(part, "eqns")]
