"""Block curvature as fitted: a Kronecker eigenbasis per tapped layer, a diagonal for the rest."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax import trees
from ideal_jax.errors import UserError
from ideal_jax.influence import inversion, kfac
from ideal_jax.influence.curvature import regulariser_product, total_weight
from ideal_jax.influence.options import Options
from ideal_jax.influence.passes import Placement, accumulate, wide
from ideal_jax.influence.problem import (
    CURVATURE,
    Batch,
    LossFn,
    Problem,
    Progress,
    Tree,
    check_weight,
    leaf_indices,
    leaf_name,
    silent,
)
from ideal_jax.influence.solve import Solved

_Operation = Callable[[jax.Array, jax.Array], jax.Array]  # on components and denominators
_Spectral = Callable[[jax.Array, _Operation], jax.Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("bases", "diagonal", "damping", "kept", "means"),
    meta_fields=("inversion",),
)
@dataclasses.dataclass(frozen=True)
class Blocks:
    """H + λI, block by block, keyed by ``leaf_name``, for the leaves in one of the two dicts.

    Attributes:
      bases: eigenbasis and eigenvalues of a tapped kernel, the regulariser's included.
      diagonal: curvature of each scalar of an uncovered leaf, the regulariser's included.
      damping: absolute λ: [L] of a tapped kernel, [] of an uncovered leaf.
      kept: bool[L] of a tapped kernel: its layers that count as important; None: all do.
      inversion: the rule that λ is used by, see ``influence.inversion``.
      means: mean curvature of each block, the regulariser's included, shaped as ``damping``.
    """

    bases: dict[str, kfac.Basis]
    diagonal: dict[str, jax.Array]
    damping: dict[str, jax.Array]
    kept: dict[str, jax.Array] | None = None
    inversion: str = "damped"
    means: dict[str, jax.Array] | None = None

    def denominators(self, name: str) -> jax.Array:
        """By what components in a leaf's eigenbasis are divided, shaped as its eigenvalues."""
        damping = self.damping[name]
        rule = inversion.RULES.get(self.inversion, inversion.damped)
        if name in self.diagonal:
            return rule(self.diagonal[name], damping)
        basis = self.bases[name]
        if self.inversion == "tikhonov":
            a, g = basis.spectra
            smooth = basis.eigenvalues - a[:, :, None] * g[:, None, :]
            return inversion.tikhonov(a, g, damping) + smooth
        return rule(basis.eigenvalues, damping[:, None, None])

    def mean_damping(self) -> float:
        """λ averaged over the parameters it is added to."""
        sizes = {name: b.eigenvalues.size for name, b in self.bases.items()}
        sizes |= {name: d.size for name, d in self.diagonal.items()}
        means = {name: np.mean(values) for name, values in self.block_damping().items()}
        return float(sum(sizes[n] * means[n] for n in sizes) / sum(sizes.values()))

    def block_damping(self) -> dict[str, tuple[float, ...]]:
        """λ of every block: one number per layer of a scanned kernel."""
        return _numbers(self.damping)

    def block_curvature(self) -> dict[str, tuple[float, ...]]:
        """The mean curvature of every block, as ``block_damping``."""
        return _numbers(self.means or {})


def fit_blocks(
    problem: Problem,
    params: Tree,
    batches: Sequence[Batch],
    *,
    key: jax.Array,
    options: Options,
    refit: bool,
    progress: Progress = silent,
) -> Blocks:
    """K-FAC, or EK-FAC when ``refit``: two, or three, passes over the batches.

    Relative damping is κ times the mean eigenvalue of each block's Gauss-Newton part. The
    regulariser's Hessian is taken as diagonal, and in a tapped kernel as a multiple of I per
    layer: exact for an L2 or proximal term.
    """
    _check_layers(problem, params)
    bases: dict[str, kfac.Basis] = {}
    variances: dict[str, jax.Array] = {}
    for group in layer_groups(problem, options.layer_groups):
        found, spread = _fit_group(group, params, batches, key, options, refit, progress)
        bases |= found
        variances |= spread
    diagonal: dict[str, jax.Array] = {}
    if options.uncovered == "diagonal":
        rest = tuple(i for name, i in leaf_indices(params).items() if name not in bases)
        diagonal = _fisher_diagonal(problem, params, batches, rest, key, options.fisher, progress)
    blocks = with_damping(problem, options, params, bases, diagonal)
    kept = _important(variances, options.important) if options.important < 1 else None
    return dataclasses.replace(blocks, kept=kept)


def _fit_group(
    problem: Problem,
    params: Tree,
    batches: Sequence[Batch],
    key: jax.Array,
    options: Options,
    refit: bool,
    progress: Progress,
) -> tuple[dict[str, kfac.Basis], dict[str, jax.Array]]:
    """The tapped layers' bases, and the variance of K-FAC's eigenvalues, [L]."""
    placement, fisher = Placement.of(params), options.fisher
    sums = accumulate(
        lambda b: kfac.factor_sums(problem, fisher, options.max_factor, placement, params, key, b),
        batches,
        phase="factors",
        progress=progress,
    )
    check_weight(CURVATURE, float(sums.weight))
    bases = kfac.eigenbasis(problem, placement, sums)
    variances = {name: jnp.var(b.eigenvalues, (1, 2)) for name, b in bases.items()}
    if not refit:
        return bases, variances
    squares = accumulate(
        lambda b: kfac.eigenvalue_sums(problem, fisher, placement, bases, params, key, b),
        batches,
        phase="eigenvalues",
        progress=progress,
    )
    refitted = {n: b._replace(eigenvalues=squares[n] / sums.weight) for n, b in bases.items()}
    return refitted, variances


def _numbers(arrays: dict[str, jax.Array]) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(np.atleast_1d(value).astype(float).tolist())
        for name, value in jax.device_get(arrays).items()
    }


@functools.cache
def layer_groups(problem: Problem, count: int) -> tuple[Problem, ...]:
    """The problem with a part of its layers each; those that share an input stay together."""
    assert problem.taps is not None
    layers, owners = problem.taps.layers, kfac.input_owners(problem)
    inputs = list(dict.fromkeys(owners.values()))
    per_group = -(-len(inputs) // count)
    groups = [inputs[k : k + per_group] for k in range(0, len(inputs), per_group)]
    if len(groups) == 1:
        return (problem,)
    chosen = [tuple(x for x in layers if owners[x.leaf] in group) for group in groups]
    return tuple(
        dataclasses.replace(problem, taps=dataclasses.replace(problem.taps, layers=part))
        for part in chosen
    )


def _important(variances: dict[str, jax.Array], share: float) -> dict[str, jax.Array]:
    """The given share of all layers, those whose eigenvalues vary least (arXiv 2505.12762)."""
    ranked = np.sort(np.concatenate([np.asarray(jax.device_get(v)) for v in variances.values()]))
    highest = ranked[max(1, round(share * len(ranked))) - 1]
    return {name: variance <= highest for name, variance in variances.items()}


def fit_diagonal(
    problem: Problem | LossFn,
    params: Tree,
    batches: Sequence[Batch],
    *,
    key: jax.Array,
    options: Options,
    progress: Progress = silent,
) -> Blocks:
    """The diagonal of the Fisher matrix for every parameter: one pass over the batches."""
    every = tuple(leaf_indices(params).values())
    diagonal = _fisher_diagonal(problem, params, batches, every, key, options.fisher, progress)
    return with_damping(problem, options, params, {}, diagonal)


def whole_diagonal(
    problem: Problem | LossFn, params: Tree, diagonal: Tree, options: Options
) -> Blocks:
    """A given diagonal, one number for each parameter, as damped curvature."""
    named = {leaf_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(diagonal)}
    return with_damping(problem, options, params, {}, named)


def _fisher_diagonal(
    problem: Problem | LossFn,
    params: Tree,
    batches: Sequence[Batch],
    leaves: tuple[int, ...],
    key: jax.Array,
    fisher: str,
    progress: Progress,
) -> dict[str, jax.Array]:
    """(1/W) Σ_x (∂g̃-loss(x))² for the leaves in these places, by name."""
    if not leaves:
        return {}
    placement, weight = Placement.of(params), total_weight(problem, params, batches)
    squares = accumulate(
        lambda b: kfac.diagonal_sums(problem, fisher, placement, leaves, params, key, b),
        batches,
        phase="diagonal",
        progress=progress,
    )
    names = {index: name for name, index in leaf_indices(params).items()}
    return {names[i]: square / weight for i, square in zip(leaves, squares, strict=True)}


def multiply_blocks(blocks: Blocks, stacked: Tree) -> Tree:
    """(H + λI) v for every v on the leading axis, with the leaves that the blocks have."""
    return mapped(blocks, stacked, Placement.of(stacked), safe_multiply)


def solve_blocks(blocks: Blocks, stacked: Tree, *, progress: Progress = silent) -> Solved:
    """(H + λI)⁻¹ g for every g on the leading axis, with the leaves that the blocks have.

    A scalar whose curvature and damping are both zero (no example touches it) gives zero too, and
    what is cut off gives zero: the residual is the share of the gradient that lies there, and the
    rounding of the rotations, which grows with the largest denominator over the smallest. The
    inverse is exact otherwise.
    """
    solutions, residuals = solve_stacked(blocks, stacked, Placement.of(stacked))
    residuals = np.asarray(jax.device_get(residuals), np.float64)
    return Solved(solutions, residuals, np.zeros(residuals.shape, np.int64))


def precondition(blocks: Blocks, stacked: Tree, placement: Placement) -> Tree:
    """The inverse alone, for conjugate gradients; ``placement`` is that of ``stacked``."""
    return mapped(blocks, stacked, placement, safe_divide)


def parts(blocks: Blocks, stacked: Tree) -> dict[str, Tree]:
    """What a solution consists of.

    "all" is what counts; "uncovered", where such parameters are kept, the part of it outside the
    tapped kernels; "unimportant", where not all layers are kept, what is left out.
    """
    found = {"all": stacked}
    if blocks.kept is not None:
        kept = blocks.kept

        def important(path: tuple, x: jax.Array) -> jax.Array:
            if leaf_name(path) not in kept:
                return x
            return jnp.where(kept[leaf_name(path)].reshape(1, *x.shape[1:-2], 1, 1), x, 0)

        found["all"] = jax.tree_util.tree_map_with_path(important, stacked)
        found["unimportant"] = jax.tree.map(jnp.subtract, stacked, found["all"])
    if blocks.diagonal:
        found["uncovered"] = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros_like(x) if leaf_name(path) in blocks.bases else x, stacked
        )
    return found


@functools.partial(jax.jit, static_argnames="placement")
def solve_stacked(blocks: Blocks, stacked: Tree, placement: Placement) -> tuple[Tree, jax.Array]:
    """``solve_blocks`` with the residuals still on the devices."""

    def solve(g: jax.Array, spectral: _Spectral) -> tuple[jax.Array, jax.Array]:
        s = spectral(g, safe_divide)
        left = spectral(s, safe_multiply) - g
        return s, jax.vmap(trees.dot)(left, left)

    solutions, left = _by_block(blocks, stacked, placement, solve)
    norms = jax.vmap(trees.norm)(stacked)
    residuals = jnp.sqrt(left) / jnp.where(norms > 0, norms, 1)
    return placement.like(solutions), placement.replicated(residuals)


@functools.partial(jax.jit, static_argnames=("placement", "operation"))
def mapped(blocks: Blocks, stacked: Tree, placement: Placement, operation: _Operation) -> Tree:
    """``operation(components, denominators)`` in every block's eigenbasis."""

    def fn(v: jax.Array, spectral: _Spectral) -> tuple[jax.Array, jax.Array]:
        return spectral(v, operation), jnp.zeros(len(v))

    return placement.like(_by_block(blocks, stacked, placement, fn)[0])


def _by_block(
    blocks: Blocks,
    stacked: Tree,
    placement: Placement,
    fn: Callable[[jax.Array, _Spectral], tuple[jax.Array, jax.Array]],
) -> tuple[Tree, jax.Array]:
    """What ``fn(v, spectral)`` makes of each block's v [r, ...], and Σ of the numbers it tells [r].

    ``spectral(v, operation)`` is ``operation(components, denominators)`` in the block's eigenbasis.
    """
    r = len(jax.tree.leaves(stacked)[0])

    def leaf(path: tuple, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        name = leaf_name(path)
        denominators = blocks.denominators(name)
        if name in blocks.diagonal:
            return fn(x, lambda v, operation: operation(v, denominators))
        operands = blocks.bases[name].inputs, blocks.bases[name].outputs, denominators
        x_RxLxIxO = x.reshape(r, *denominators.shape)

        def layer(l: jax.Array, found: tuple) -> tuple[jax.Array, jax.Array]:  # noqa: E741
            q_a, q_g, d = (operand[l] for operand in operands)
            q_a, q_g = placement.replicated((q_a, q_g))
            spectral = functools.partial(_rotated, placement, q_a, q_g, d)
            result, number = fn(x_RxLxIxO[:, l], spectral)
            total = (found[1] + number).astype(found[1].dtype)
            return found[0].at[:, l].set(result.astype(x.dtype)), total

        # One layer at a time: on a mesh its eigenvectors are gathered, not those of all layers.
        start = jnp.zeros_like(x_RxLxIxO), jnp.zeros(r, wide(x).dtype)
        solutions, number = jax.lax.fori_loop(0, len(denominators), layer, start)
        return solutions.reshape(x.shape), number

    found = [leaf(path, x) for path, x in jax.tree_util.tree_leaves_with_path(stacked)]
    made = jax.tree.unflatten(jax.tree.structure(stacked), [x for x, _ in found])
    return made, jnp.sum(jnp.stack([number for _, number in found]), axis=0)


def _rotated(
    placement: Placement,
    q_a: jax.Array,
    q_g: jax.Array,
    denominators: jax.Array,
    v_RxIxO: jax.Array,
    operation: _Operation,
) -> jax.Array:
    """``operation`` in the eigenbasis of one layer.

    On a mesh every device rotates some columns by Q_A and some rows by Q_G: eigenvectors are
    gathered, the far larger v change hands and are never summed.
    """
    columns, rows = (functools.partial(placement.spread, axis=axis) for axis in (-1, -2))
    v = columns(kfac.on_inputs(columns(v_RxIxO), q_a))
    v = operation(rows(kfac.on_outputs(rows(v), q_g)), rows(denominators))
    v = rows(kfac.on_outputs(v, jnp.swapaxes(q_g, -1, -2)))
    return columns(kfac.on_inputs(columns(v), jnp.swapaxes(q_a, -1, -2)))


def safe_multiply(x: jax.Array, by: jax.Array) -> jax.Array:
    """x · by, and 0 where ``by`` is infinite: what was cut off."""
    return jnp.where(jnp.isfinite(by), x * jnp.where(jnp.isfinite(by), by, 1), 0)


def safe_divide(x: jax.Array, by: jax.Array) -> jax.Array:
    """x / by, and 0 where ``by`` is not positive."""
    return jnp.where(by > 0, x / jnp.where(by > 0, by, 1), 0)


@functools.partial(jax.jit, static_argnames=("problem", "options"))
def with_damping(
    problem: Problem | LossFn,
    options: Options,
    params: Tree,
    bases: dict[str, kfac.Basis],
    diagonal: dict[str, jax.Array],
) -> Blocks:
    """Fitted curvature with the regulariser's and the λ that the options mean."""
    ones = jax.tree.map(jnp.ones_like, params)
    smooth = {
        leaf_name(path): jnp.maximum(leaf, 0)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            regulariser_product(problem, params, ones)
        )
    }

    def amount(mean: jax.Array) -> jax.Array:
        relative = options.damping_mode == "relative"
        return options.damping * mean if relative else jnp.full_like(mean, options.damping)

    def with_smooth(name: str, basis: kfac.Basis) -> kfac.Basis:
        shift = jnp.mean(smooth[name].reshape(basis.eigenvalues.shape), (1, 2), keepdims=True)
        return basis._replace(eigenvalues=basis.eigenvalues + shift)

    means = {n: jnp.mean(b.eigenvalues, (1, 2)) for n, b in bases.items()}
    means |= {n: jnp.mean(d) for n, d in diagonal.items()}
    bases = {n: with_smooth(n, b) for n, b in bases.items()}
    return Blocks(
        bases=bases,
        diagonal={n: d + smooth[n] for n, d in diagonal.items()},
        damping={n: amount(mean) for n, mean in means.items()},
        inversion=options.inversion,
        means={n: mean + jnp.mean(smooth[n]) for n, mean in means.items()},
    )


def _check_layers(problem: Problem, params: Tree) -> None:
    shapes = {
        leaf_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for name, layer in kfac.covered_leaves(problem).items():
        if name not in shapes:
            raise UserError(
                f"tapped layer '{layer.name}': no parameter at '{name}'; correct TapLayer.path"
            )
        if len(shapes[name]) != 2 + layer.scanned:
            raise UserError(
                f"tapped layer '{layer.name}': kernel '{name}' has shape {shapes[name]}; it must be"
                f" {'[L, I, O]' if layer.scanned else '[I, O]'}; correct TapLayer.scanned"
            )
