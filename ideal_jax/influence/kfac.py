"""Kronecker factors, their eigenbasis, and eigenvalues fitted in it (K-FAC and EK-FAC).

For a dense layer, ∇W(x) = Σ_t a_t g_tᵀ. The Gauss-Newton block F = (1/W) Σ_x E[vec ∇W vec ∇Wᵀ] is
approximated (K-FAC-expand: positions independent, inputs independent of gradients) by A ⊗ G with

    A = mean of a aᵀ over the real positions,  G = (1/W) Σ of g gᵀ over the real positions,

g the gradient of g̃'s loss (``Problem.sample_labels``). EK-FAC keeps the eigenvectors and measures
the eigenvalues anew: λ_io = (1/W) Σ_x (Q_Aᵀ ∇W(x) Q_G)²_io (George et al. 2018, arXiv 1806.03884).
A factor wider than ``max_factor`` is split into k equal diagonal blocks, so all are [L, k, b, b].
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ideal_jax.influence.eigen import eigh
from ideal_jax.influence.passes import Placement, wide
from ideal_jax.influence.problem import (
    Batch,
    LossFn,
    Problem,
    TapLayer,
    Tree,
    example_loss,
    leaf_indices,
)
from ideal_jax.models import lora
from ideal_jax.taps import Tap

_EXACT = jax.lax.Precision.HIGHEST
_Form = Callable[..., Tree]  # of a layer's a_BxTxI and g_BxTxO, zero at padding, and of operands


class Factors(NamedTuple):
    """Sums over examples, for each tapped layer by its kernel's ``leaf_name``.

    Attributes:
      inputs: Σ a aᵀ, [L, k, b, b]; once for layers that share their input.
      outputs: Σ g gᵀ, [L, q, c, c].
      positions: number of real positions.
      weight: Σ w.
    """

    inputs: dict[str, jax.Array]
    outputs: dict[str, jax.Array]
    positions: jax.Array
    weight: jax.Array


class Basis(NamedTuple):
    """The eigenbasis of one layer.

    Attributes:
      inputs, outputs: eigenvectors of A and of G in columns, [L, k, b, b] and [L, q, c, c].
      spectra: their eigenvalues, [L, I] and [L, O].
      eigenvalues: of A ⊗ G, or fitted in its eigenbasis, [L, I, O].
    """

    inputs: jax.Array
    outputs: jax.Array
    spectra: tuple[jax.Array, jax.Array]
    eigenvalues: jax.Array


@functools.partial(jax.jit, static_argnames=("problem", "fisher", "max_factor", "placement"))
def factor_sums(
    problem: Problem,
    fisher: str,
    max_factor: int,
    placement: Placement,
    params: Tree,
    key: jax.Array,
    batch: Batch,
) -> Factors:
    """The factors' sums over one batch."""
    owners = input_owners(problem)
    forms: dict[str, _Form] = {
        name: functools.partial(_moments, max_factor=max_factor, owns_input=owner == name)
        for name, owner in owners.items()
    }
    sums, w_B = _tapped(problem, fisher, params, key, batch, forms, dict.fromkeys(forms, ()))
    assert problem.taps is not None
    return Factors(
        inputs={n: placement.spread(sums[n]["inputs"]) for n in dict.fromkeys(owners.values())},
        outputs={n: placement.spread(sums[n]["outputs"]) for n in sums},
        positions=jnp.sum(wide(problem.taps.mask(batch))),
        weight=jnp.sum(wide(w_B)),
    )


@functools.partial(jax.jit, static_argnames=("problem", "placement"))
def eigenbasis(problem: Problem, placement: Placement, factors: Factors) -> dict[str, Basis]:
    """Eigenvectors of the factors, with K-FAC's eigenvalues λ_A λ_Gᵀ.

    Every device decomposes its share of the matrices, layer by layer, whatever they belong to.
    """
    means = {("a", n): x / factors.positions for n, x in factors.inputs.items()}
    means |= {("g", n): x / factors.weight for n, x in factors.outputs.items()}
    found = _decomposed(means, placement)
    bases = {}
    for name, owner in input_owners(problem).items():
        (a, q_a), (g, q_g) = found["a", owner], found["g", name]
        bases[name] = Basis(q_a, q_g, (a, g), placement.spread(a[:, :, None] * g[:, None, :]))
    return bases


def _decomposed(
    matrices: dict[tuple[str, str], jax.Array], placement: Placement
) -> dict[tuple[str, str], tuple[jax.Array, jax.Array]]:
    """Eigenvalues [L, k·b], at least 0, and eigenvectors [L, k, b, b] of stacks [L, k, b, b]."""
    found = {}
    for width in {x.shape[-1] for x in matrices.values()}:
        same = {name: x for name, x in matrices.items() if x.shape[-1] == width}
        stack = jnp.concatenate([x.reshape(-1, width, width) for x in same.values()])
        values, vectors = _split_over_devices(_one_by_one, stack, placement.mesh)
        start = 0
        for name, x in same.items():
            L, k = x.shape[:2]
            here = slice(start, start + L * k)
            # A factor is positive semidefinite; rounding is not.
            spectrum = jnp.maximum(values[here].reshape(L, -1), 0)
            found[name] = spectrum, placement.spread(vectors[here].reshape(x.shape))
            start += L * k
    return found


def _one_by_one(stack: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors, one matrix a call.

    jaxlib's batched CPU kernel (0.10.2) waits, on a thread of XLA's pool, for tasks of that pool:
    as many of them at a time as it has threads wait for each other for ever.
    """
    return jax.lax.map(eigh, stack)


def _split_over_devices(fn: Callable[[jax.Array], Any], stack: jax.Array, mesh: Mesh | None) -> Any:
    """``fn`` of a stack, every device taking its share of the leading axis."""
    if mesh is None:
        return fn(stack)
    count = stack.shape[0]
    missing = -count % mesh.size
    padding = jnp.zeros((missing, *stack.shape[1:]), stack.dtype)
    axis = PartitionSpec(mesh.axis_names)
    # What ``fn`` starts its loops with does not say that it varies over the devices.
    split = jax.shard_map(fn, mesh=mesh, in_specs=axis, out_specs=axis, check_vma=False)
    return jax.tree.map(lambda x: x[:count], split(jnp.concatenate([stack, padding])))


@functools.partial(jax.jit, static_argnames=("problem", "fisher", "placement"))
def eigenvalue_sums(
    problem: Problem,
    fisher: str,
    placement: Placement,
    bases: dict[str, Basis],
    params: Tree,
    key: jax.Array,
    batch: Batch,
) -> dict[str, jax.Array]:
    """Σ_x (Q_Aᵀ ∇W(x) Q_G)² over one batch, [L, I, O] for each layer."""
    forms: dict[str, _Form] = dict.fromkeys(bases, _squares)
    vectors = {name: (basis.inputs, basis.outputs) for name, basis in bases.items()}
    sums, _ = _tapped(problem, fisher, params, key, batch, forms, vectors)
    leaves, indices = jax.tree.leaves(params), leaf_indices(params)
    for name, squares in sums.items():
        kernel = squares.reshape(leaves[indices[name]].shape)
        sums[name] = placement.leaf(indices[name], kernel).reshape(squares.shape)
    return sums


@functools.partial(jax.jit, static_argnames=("problem", "fisher", "placement", "leaves"))
def diagonal_sums(
    problem: Problem | LossFn,
    fisher: str,
    placement: Placement,
    leaves: tuple[int, ...],
    params: Tree,
    key: jax.Array,
    batch: Batch,
) -> list[jax.Array]:
    """Σ_x (∂g̃-loss(x))² for the chosen ``leaves`` (by their place in tree order).

    The squares are exact: one gradient per example, so B copies of these leaves exist.
    """
    every, treedef = jax.tree.flatten(params)
    loss_fn = example_loss(problem)
    labelled = batch
    if fisher == "sampled":
        assert isinstance(problem, Problem)
        labelled = _labelled(problem, fisher, problem.outputs(params, batch), batch, key)
    rows, frozen = lora.rows_and_frozen(labelled)

    def loss(free: list[jax.Array], row: Batch) -> jax.Array:
        merged = list(every)
        for i, leaf in zip(leaves, free, strict=True):
            merged[i] = leaf
        single = lora.with_frozen(jax.tree.map(lambda x: x[None], row), frozen)
        return jnp.sum(loss_fn(jax.tree.unflatten(treedef, merged), single)[0])

    gradients = jax.vmap(jax.grad(loss), (None, 0))([every[i] for i in leaves], rows)
    return [
        placement.leaf(i, jnp.sum(jnp.square(wide(gradient)), axis=0))
        for i, gradient in zip(leaves, gradients, strict=True)
    ]


def on_inputs(v_IxO: jax.Array, q_a: jax.Array) -> jax.Array:
    """Q_Aᵀ V for one layer's V [..., I, O]."""
    return jnp.swapaxes(on_outputs(jnp.swapaxes(v_IxO, -1, -2), q_a), -1, -2)


def on_outputs(v_IxO: jax.Array, q_kxbxc: jax.Array) -> jax.Array:
    """V Q_G, Q_G block-diagonal."""
    parts = v_IxO.reshape(*v_IxO.shape[:-1], *q_kxbxc.shape[:-1])
    rotated = jnp.einsum("...kb,kbc->...kc", parts, q_kxbxc, precision=_EXACT)
    return rotated.reshape(v_IxO.shape)


def covered_leaves(problem: Problem) -> dict[str, TapLayer]:
    """The tapped layers by the ``leaf_name`` of their kernels."""
    assert problem.taps is not None
    return {layer.leaf: layer for layer in problem.taps.layers}


def input_owners(problem: Problem) -> dict[str, str]:
    """For every tapped kernel the one whose input factor it uses: its own, or that it shares."""
    assert problem.taps is not None
    leaves = {layer.name: layer.leaf for layer in problem.taps.layers}
    return {x.leaf: leaves.get(x.shares or x.name, x.leaf) for x in problem.taps.layers}


def _tapped(
    problem: Problem,
    fisher: str,
    params: Tree,
    key: jax.Array,
    batch: Batch,
    forms: Mapping[str, _Form],
    operands: Mapping[str, tuple[jax.Array, ...]],
) -> tuple[dict[str, Tree], jax.Array]:
    """What a form makes of each layer's inputs and output gradients, [L, ...] by kernel; w_B.

    The operands of a kernel, [L, ...], are its form's own.
    """
    taps = problem.taps
    assert taps is not None
    leaves, indices, real_BxT = jax.tree.leaves(params), leaf_indices(params), taps.mask(batch)
    whole = {
        layer.leaf: _tap(
            forms[layer.leaf], operands[layer.leaf], leaves[indices[layer.leaf]], real_BxT
        )
        for layer in taps.layers
    }

    def loss(zeros: dict[str, Tree]) -> tuple[jax.Array, jax.Array]:
        given = {}
        for layer in taps.layers:
            tap = dataclasses.replace(whole[layer.leaf], zeros=zeros[layer.leaf])
            given[layer.name] = tap if layer.scanned else jax.tree.map(lambda x: x[0], tap)
        out = taps.run(params, given, batch)
        l_B, _ = problem.loss(out, _labelled(problem, fisher, out, batch, key))
        return jnp.sum(l_B), problem.loss(out, batch)[1]

    return jax.grad(loss, has_aux=True)({name: tap.zeros for name, tap in whole.items()})


def _tap(
    form: _Form, operands: tuple[jax.Array, ...], kernel: jax.Array, real_BxT: jax.Array
) -> Tap:
    """A tap for the layers of a kernel [L?, I, O]; every array of it has the axis L."""
    dtype, (*layers, I, O) = wide(kernel).dtype, kernel.shape  # noqa: E741
    arrays = (jnp.broadcast_to(real_BxT, (math.prod(layers), *real_BxT.shape)), *operands)

    def formed(x: jax.Array, g: jax.Array, arrays: tuple[jax.Array, ...]) -> Tree:
        real_BxTx1, *own = arrays[0][..., None], *arrays[1:]
        return form(*(jnp.where(real_BxTx1, z.astype(dtype), 0) for z in (x, g)), *own)

    x, g = (jax.ShapeDtypeStruct((*real_BxT.shape, width), dtype) for width in (I, O))
    shapes = jax.eval_shape(jax.vmap(formed, (None, None, 0)), x, g, arrays)
    return Tap(formed, arrays, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))


def _moments(
    a_BxTxI: jax.Array, g_BxTxO: jax.Array, *, max_factor: int, owns_input: bool
) -> dict[str, jax.Array]:
    """Σ g gᵀ, and Σ a aᵀ where no other layer has it, [k, b, b] each."""
    sides = {"outputs": g_BxTxO} | ({"inputs": a_BxTxI} if owns_input else {})
    return {side: _second_moment(x, max_factor) for side, x in sides.items()}


def _squares(a_BxTxI: jax.Array, g_BxTxO: jax.Array, q_a: jax.Array, q_g: jax.Array) -> jax.Array:
    """Σ_x (Q_Aᵀ ∇W(x) Q_G)², [I, O]."""
    (_, T, I), O = a_BxTxI.shape, g_BxTxO.shape[2]  # noqa: E741
    of_tokens = T * (q_a.size + q_g.size)
    of_gradients = I * O * (q_a.shape[-1] + q_g.shape[-1])
    if of_tokens <= of_gradients:
        a_BxTxI, g_BxTxO = on_outputs(a_BxTxI, q_a), on_outputs(g_BxTxO, q_g)
    gradients_BxIxO = jnp.einsum("BTI,BTO->BIO", a_BxTxI, g_BxTxO, precision=_EXACT)
    if of_tokens > of_gradients:
        gradients_BxIxO = on_outputs(on_inputs(gradients_BxIxO, q_a), q_g)
    return jnp.sum(jnp.square(gradients_BxIxO), axis=0)


def _labelled(problem: Problem, fisher: str, out: Tree, batch: Batch, key: jax.Array) -> Batch:
    """The batch whose loss has the Fisher's gradients: the model's labels, or its own."""
    if fisher == "empirical":
        return batch
    assert problem.sample_labels is not None
    return problem.sample_labels(jax.lax.stop_gradient(out), batch, key)


def _second_moment(x_BxTxI: jax.Array, max_factor: int) -> jax.Array:
    """Σ x xᵀ over rows and positions, [k, b, b]."""
    width = x_BxTxI.shape[-1]
    block = block_width(width, max_factor)
    x = x_BxTxI.reshape(-1, width // block, block)
    return jnp.einsum("nkb,nkc->kbc", x, x, precision=_EXACT)


def block_width(width: int, max_factor: int) -> int:
    """Of the fewest equal parts of a width that are not wider than ``max_factor``."""
    parts = (k for k in range(1, width + 1) if width % k == 0 and width // k <= max_factor)
    return width // next(parts)
