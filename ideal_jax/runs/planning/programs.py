"""The programs of a run, with arguments that only have shapes and shardings.

They are the functions that a run calls, lowered for devices that need not be there; nothing is
allocated.
"""

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from ideal_jax import sharding, training
from ideal_jax.evaluation import make_generate
from ideal_jax.influence import Needs, Options, Problem, kfac, needs_of
from ideal_jax.influence.blocks import (
    Blocks,
    layer_groups,
    mapped,
    safe_divide,
    safe_multiply,
    solve_stacked,
    with_damping,
)
from ideal_jax.influence.curvature import hessian_sum, product_sum
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.influence.official import batch_squares
from ideal_jax.influence.passes import Placement
from ideal_jax.influence.problem import leaf_indices, other_leaves
from ideal_jax.influence.scores import batch_scores, gradient_sums, without
from ideal_jax.models import Decoder, abstract_params, decoder_loss, lora
from ideal_jax.runs import cost
from ideal_jax.runs.base_model import without_adapters


class Program(NamedTuple):
    """A jitted function and what it is called with.

    Attributes:
      name: the phase: "train", "generate", "gradient", "curvature", "eigen", "refit", "solve",
        "product" or "score"; the others of ``memory.memory`` are judged by formula.
      function: from ``jax.jit``.
      arguments: those of the call; arrays are ``jax.ShapeDtypeStruct``s with shardings.
      classes: what the devices hold while it runs, arguments or not: "params", "optimizer",
        "batch", "frozen", "curvature", "vectors".
      mesh: the devices.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    classes: dict[str, Any]
    mesh: Mesh

    def trace(self) -> jax.stages.Traced:
        """The program before it is lowered: ``.lower()`` is next."""
        with jax.set_mesh(self.mesh):
            traced: jax.stages.Traced = self.function.trace(*self.arguments)
        return traced


def programs(
    config: Any,
    model: Decoder,
    mesh: Mesh,
    tangents: int,
    *,
    generates: bool = True,
    influences: bool = True,
) -> Iterator[Program]:
    """Every program of a run that may decide whether it fits.

    Args:
      config: the run's.
      model: with the attention of the mesh's platform (``base_model.with_attention``).
      mesh: of any devices, there or not.
      tangents: right-hand sides solved and scored at one time.
      generates, influences: whether the run does.
    """
    params, frozen = _trained(model, mesh)
    train = train_program(config, model, mesh, params, frozen)
    yield train
    # The state of a training stays until its round is over.
    held = {"params": params, "optimizer": train.classes["optimizer"], "frozen": frozen}
    if generates:
        yield generate_program(config, model, mesh, held)
    if influences:
        yield from influence_programs(config, model, mesh, held, tangents)


def train_program(config: Any, model: Decoder, mesh: Mesh, params: Any, frozen: Any) -> Program:
    """One optimizer step."""
    options = config.training
    step, state = training.step_program(
        mesh,
        params,
        decoder_loss(model, config.loss.block),
        training.adamw(FrozenConfigDict(options), max(options.steps, 1)),
        options.micro_batches,
    )
    batch = abstract_batch(mesh, options.batch_size, config.data.row_length, 8)
    classes = {
        "params": state.params,
        "optimizer": state.opt_state,
        "batch": batch,
        "frozen": frozen,
    }
    arguments = (state, lora.with_frozen(batch, frozen))
    return Program("train", step, arguments, classes, mesh)


def generate_program(config: Any, model: Decoder, mesh: Mesh, held: dict[str, Any]) -> Program:
    """Prompts of the longest width, and the loop over new tokens."""
    whole, options = without_adapters(model), config.eval
    generate = make_generate(whole, max_new_tokens=options.max_new_tokens, end_id=0)
    params = abstract_params(whole, mesh)
    rows = _rows(mesh, options.batch_size)
    tokens = _array(mesh, (rows, config.data.row_length), jnp.int32, "batch")
    lengths = _array(mesh, (rows,), jnp.int32, "batch")
    merged = {} if model.cfg.lora is None else params
    classes = {**held, "merged": merged, "batch": (tokens, lengths)}
    return Program("generate", jax.jit(generate), (params, tokens, lengths), classes, mesh)


def influence_programs(
    config: Any, model: Decoder, mesh: Mesh, held: dict[str, Any], tangents: int
) -> Iterator[Program]:
    """Gradients, curvature, solve and scores as the config's estimator has them."""
    options, params, frozen = config.influence, held["params"], held["frozen"]
    needs = needs_of(options.estimator)
    if needs.run:
        return
    problem = decoder_problem(model, options.layers, options.max_factor)
    placement, rows = Placement.of(params), _rows(mesh, options.batch_size)
    length = config.data.row_length
    packed = abstract_batch(mesh, rows, length, config.data.max_segments)
    left_out: frozenset[str] = frozenset()
    if cost.left_out(options):
        left_out = other_leaves(params, kfac.covered_leaves(problem))
    part = without(params, left_out)
    vectors = _stacked(mesh, part, tangents)
    kinds = {**held, "batch": packed, "vectors": vectors}
    batch = lora.with_frozen(packed, frozen)
    arguments: tuple[Any, ...]
    arguments = (problem.example_loss, Placement.of(part), left_out, params, batch)
    yield Program("gradient", gradient_sums, arguments, kinds, mesh)

    kinds = {**held, "batch": abstract_batch(mesh, rows, length, 1)}
    if needs.kronecker:
        chosen = Options(
            max_factor=options.max_factor,
            layer_groups=options.layer_groups,
            uncovered=options.uncovered,
            fisher="empirical" if needs.batch_gradients else options.fisher,
        )
        fitted = yield from _kronecker(problem, chosen, needs, placement, kinds, vectors, mesh)
        held = {**held, "curvature": fitted}
        kinds = {**kinds, "curvature": fitted}
    if needs.product:
        single = lora.with_frozen(kinds["batch"], frozen)
        product, of = {
            "gauss_newton": (product_sum, problem),
            "hessian": (hessian_sum, problem.example_loss),
        }[needs.product]
        arguments = (of, placement, params, vectors, single)
        yield Program("product", product, arguments, {**kinds, "vectors": vectors}, mesh)

    extra = needs.parts * ((options.uncovered == "diagonal") + (options.important < 1))
    along = _stacked(mesh, part, tangents + extra)
    kinds = {**held, "batch": packed, "vectors": along}
    arguments = (problem, placement, params, along, batch)
    yield Program("score", batch_scores, arguments, kinds, mesh)


def abstract_batch(mesh: Mesh, rows: int, length: int, segments: int) -> dict[str, Any]:
    """A batch as ``data.pipeline`` makes them and ``sharding.place`` puts them."""
    whole = {
        name: _array(mesh, (rows, length), jnp.int32, "batch")
        for name in ("tokens", "targets", "segments", "positions")
    }
    return {
        **whole,
        "weights": _array(mesh, (rows, length), jnp.float32, "batch"),
        "domains": _array(mesh, (rows,), jnp.int32, "batch"),
        "examples": _array(mesh, (rows, segments), jnp.int32, "batch"),
    }


def _kronecker(
    problem: Problem,
    options: Options,
    needs: Needs,
    placement: Placement,
    kinds: dict[str, Any],
    vectors: Any,
    mesh: Mesh,
) -> Generator[Program, None, Blocks]:
    """Factors, their eigenbasis, its eigenvalues and the solve; returns what is fitted."""
    params, batch = kinds["params"], lora.with_frozen(kinds["batch"], kinds["frozen"])
    key = jax.eval_shape(lambda: jax.random.key(0))
    groups = layer_groups(problem, options.layer_groups)
    refit = needs.kronecker > 1
    bases: dict[str, kfac.Basis] = {}
    found: list[tuple[Program, ...]] = []
    for group in groups:
        start = (group, options.fisher, options.max_factor, placement, params, key, batch)
        factors = _spread(placement, jax.eval_shape(kfac.factor_sums, *start))
        basis = jax.eval_shape(kfac.eigenbasis, group, placement, factors)
        basis = {n: _placed_basis(placement, params, n, b, refit) for n, b in basis.items()}
        again: tuple[Any, ...] = (group, options.fisher, placement, basis, params, key, batch)
        squared = kfac.eigenvalue_sums
        if needs.batch_gradients:
            again, squared = (group, basis, params, batch), batch_squares
        # Sums over the batches before this one are held beside what it adds.
        before = {**kinds, "curvature": (bases, factors)}
        squares = {name: b.eigenvalues for name, b in basis.items()}
        after = {**kinds, "curvature": (bases, basis, squares)}
        found.append(
            (
                Program("curvature", kfac.factor_sums, start, before, mesh),
                Program("eigen", kfac.eigenbasis, (group, placement, factors), before, mesh),
                Program("refit", squared, again, after, mesh),
            )
        )
        bases = {**bases, **basis}
    for place in range(2 + bool(refit or needs.batch_gradients)):
        yield max((group[place] for group in found), key=_weight)
    blocks = _blocks(problem, options, placement, params, bases)
    kinds = {**kinds, "curvature": blocks, "vectors": vectors}
    arguments: tuple[Any, ...] = (blocks, vectors, Placement.of(vectors))
    if needs.rotations == 2:
        yield Program("solve", solve_stacked, arguments, kinds, mesh)
    else:  # as a preconditioner, or multiplied by
        operation = safe_divide if needs.product else safe_multiply
        yield Program("solve", mapped, (*arguments, operation), kinds, mesh)
    return blocks


def _blocks(
    problem: Problem, options: Options, placement: Placement, params: Any, bases: Any
) -> Blocks:
    """The fitted curvature's shapes and shardings."""
    leaves, indices = jax.tree.leaves(params), leaf_indices(params)
    diagonal: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(leaves[i].shape, jnp.float32, sharding=leaves[i].sharding)
        for name, i in indices.items()
        if name not in bases and options.uncovered == "diagonal"
    }
    blocks = jax.eval_shape(with_damping, problem, options, params, bases, diagonal)
    return Blocks(bases, diagonal, _spread(placement, blocks.damping), None, blocks.inversion)


def _placed_basis(
    placement: Placement, params: Any, name: str, basis: kfac.Basis, refit: bool
) -> kfac.Basis:
    """Eigenvectors over all devices; fitted eigenvalues where their kernel is."""
    placed: kfac.Basis = _spread(placement, basis)
    if not refit:
        return placed
    leaf = jax.tree.leaves(params)[leaf_indices(params)[name]]
    shape = basis.eigenvalues.shape
    names = (*[None] * (len(shape) - leaf.ndim), *leaf.sharding.spec)
    own = NamedSharding(leaf.sharding.mesh, PartitionSpec(*names))
    eigenvalues: Any = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=own)
    return placed._replace(eigenvalues=eigenvalues)


def _spread(placement: Placement, tree: Any) -> Any:
    """Shapes with the shardings that ``Placement.spread`` gives; what is small is everywhere."""

    def leaf(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.spread_sharding(x.shape))

    return jax.tree.map(leaf, tree)


def _trained(model: Decoder, mesh: Mesh) -> tuple[Any, Any]:
    """(trained, frozen) parameters."""
    whole = abstract_params(model, mesh)
    if model.cfg.lora is None:
        return whole, {}
    frozen, adapters = lora.split(whole)
    return adapters, frozen


def _stacked(mesh: Mesh, params: Any, count: int) -> Any:
    """``count`` trees like the parameters, in float32."""

    def leaf(x: Any) -> Any:
        split = PartitionSpec(None, *x.sharding.spec)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jax.ShapeDtypeStruct((count, *x.shape), wide, sharding=NamedSharding(mesh, split))

    return jax.tree.map(leaf, params)


def _array(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *names: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sharding.spec(*names)))


def _rows(mesh: Mesh, wanted: int) -> int:
    ways = sharding.batch_ways(mesh)
    return -(-wanted // ways) * ways


def _weight(program: Program) -> int:
    """Bytes of the arguments: of several groups of layers the heaviest counts."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.classes))
