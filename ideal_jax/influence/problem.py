"""What the estimators ask of a model: its loss split in two, its taps, and samples of examples."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ideal_jax.errors import UserError
from ideal_jax.taps import Tap

Tree = Any
Batch = Any
CURVATURE = "the curvature batches"  # how errors name that set
LossFn = Callable[[Tree, Batch], tuple[jax.Array, jax.Array]]
Progress = Callable[[str, int, int], None]


class TapLayer(NamedTuple):
    """A dense layer whose input and output gradient can be read.

    Attributes:
      name: its key in the taps of ``Taps.run``.
      path: keys that lead to its kernel in the parameters: [I, O], or [L, I, O] when scanned.
      scanned: whether the kernel, and so its tap, carries a leading axis of L layers.
      shares: name of another layer that reads the same input, whose factor then serves for both.
    """

    name: str
    path: tuple[Any, ...]
    scanned: bool = False
    shares: str | None = None

    @property
    def leaf(self) -> str:
        """The kernel's path as ``leaf_name`` spells it."""
        return "/".join(map(str, self.path))


@dataclasses.dataclass(frozen=True)
class Taps:
    """Access to the dense layers of a model, for Kronecker-factored curvature.

    A kernel that is used twice (tied) must not be listed; it then counts as uncovered.

    Attributes:
      run: ``(params, taps, batch) -> out``: the model's outputs, with ``y = taps[name](x, y)``
        where a layer maps x [B, T, I] to y [B, T, O], for each name there is.
      mask: ``batch -> bool[B, T]``: real positions, unsupervised ones included, padding not.
      layers: the layers that can be tapped.
    """

    run: Callable[[Tree, Mapping[str, Tap], Batch], Tree]
    mask: Callable[[Batch], jax.Array]
    layers: tuple[TapLayer, ...]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model and its loss, split where curvature needs it split.

    Every leaf of a batch has the row axis B first. ``ℓ(x) = Σ_t c_t nll_t`` and
    ``w(x) = Σ_t c_t``; an example that only pads the batch has ℓ = w = 0. Rows hold one example
    each where curvature is fitted; where losses are differentiated they may hold several, and ℓ
    and w are then longer than B. The functions are static arguments of compiled ones: build the
    problem once and pass the same object again.

    Attributes:
      outputs: ``(params, batch) -> out``, the model's outputs, of which the loss is convex.
      loss: ``(out, batch) -> (ℓ_B, w_B)``.
      sample_labels: ``(out, batch, key) -> batch``: the batch with labels ŷ_t drawn from the model
        *and with weights √c_t*, so that ``loss`` on it gives g̃(x) = Σ_t √c_t ∇nll_t(ŷ_t) and
        (1/W) Σ_x E[g̃g̃ᵀ] is the Gauss-Newton matrix whatever c is. The same key comes with every
        batch: draw from (key, example, position), or batches share their noise.
      regulariser: ``params -> ρ``, the term that was really optimised beside the data term.
      taps: see ``Taps``.
      losses: ``(params, batch) -> (ℓ_B, w_B)``: the same as ``loss`` of ``outputs``, where it can
        be had without all outputs at one time.
      scores: ``(params, tangents, batch) -> (vᵀ∇ℓ [R, B], w_B)`` for each of R tangents v, where it
        can be had for less than R derivatives of ``losses`` in forward mode. The tangents are like
        the parameters, with None for leaves along which no v goes.
    """

    outputs: Callable[[Tree, Batch], Tree]
    loss: Callable[[Tree, Batch], tuple[jax.Array, jax.Array]]
    sample_labels: Callable[[Tree, Batch, jax.Array], Batch] | None = None
    regulariser: Callable[[Tree], jax.Array] | None = None
    taps: Taps | None = None
    losses: LossFn | None = None
    scores: Callable[[Tree, Tree, Batch], tuple[jax.Array, jax.Array]] | None = None

    def example_loss(self, params: Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """``(ℓ_B, w_B)`` at ``params``."""
        if self.losses is not None:
            return self.losses(params, batch)
        return self.loss(self.outputs(params, batch), batch)


class Sample(NamedTuple):
    """Examples drawn without replacement from a finite population (a domain, a reference set).

    Attributes:
      batches: can be gone through again and again; rows that pad a batch have ℓ = w = 0.
      size: N, examples in the population (the current multiset, repeats counted).
      sampled: m, examples in ``batches``; None: all of them.
      weight: W = Σ w over the population if known; None: N times the mean of the sample.
    """

    batches: Sequence[Batch]
    size: int
    sampled: int | None = None
    weight: float | None = None

    @property
    def drawn(self) -> int:
        """m, the examples in ``batches``."""
        return self.size if self.sampled is None else self.sampled

    def joined(self, other: "Sample") -> "Sample":
        """This sample and further examples of the same population."""
        batches = _Chain((self.batches, other.batches))
        return self._replace(batches=batches, sampled=self.drawn + other.drawn)


@dataclasses.dataclass(frozen=True)
class _Chain(Sequence[Batch]):
    """Sequences one after the other; nothing is read before it is asked for."""

    parts: tuple[Sequence[Batch], ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, number: Any) -> Batch:
        for part in self.parts:
            if number < len(part):
                return part[number]
            number -= len(part)
        raise IndexError(number)


def example_loss(problem: Problem | LossFn) -> LossFn:
    """The per-example loss of a problem, or the plain loss function itself."""
    return problem.example_loss if isinstance(problem, Problem) else problem


def require(problem: Problem | LossFn, estimator: str, *pieces: str) -> Problem:
    """The problem, if it has what the estimator needs.

    Raises:
      UserError: it is a plain loss function, or one of ``pieces`` is missing.
    """
    if not isinstance(problem, Problem):
        raise UserError(
            f"influence estimator '{estimator}' needs Problem(outputs, loss), not a plain loss"
            " function; pass a Problem or choose estimator 'identity'"
        )
    for piece in pieces:
        if getattr(problem, piece) is None:
            raise UserError(
                f"influence estimator '{estimator}' needs Problem.{piece}; give it or choose"
                " another estimator"
            )
    return problem


def check_weight(what: str, weight: float) -> None:
    """Whether a set has examples that count.

    Raises:
      UserError: all its weights are 0.
    """
    if weight <= 0:  # NaN is another mistake
        verb = "have" if what == CURVATURE else "has"
        raise UserError(
            f"{what} {verb} no supervised weight: all w(x) are 0; give examples with targets"
        )


def leaf_name(path: Any) -> str:
    """A leaf's path in the parameters, e.g. ``layers/mlp/up/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_indices(tree: Tree) -> dict[str, int]:
    """The place of every leaf in tree order, by name."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): index for index, (path, _) in enumerate(paths)}


def other_leaves(tree: Tree, names: Iterable[str]) -> frozenset[str]:
    """The names of all leaves but these."""
    return frozenset(leaf_indices(tree)).difference(names)


def silent(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
