"""What an influence estimate costs in FLOPs, before and after."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ideal_jax.influence import Problem, Sample, needs_of
from ideal_jax.influence.kfac import block_width, input_owners
from ideal_jax.influence.problem import leaf_name
from ideal_jax.mixture import MixturePlan
from ideal_jax.runs import cost
from ideal_jax.runs.influence_samples import Placed
from ideal_jax.runs.session import Session
from ideal_jax.runs.train_run import round_recipe, trained_shapes

# Phases of the price by the name that ``estimate`` tells, where it is another.
_PHASES = {
    "curvature": "factors",
    "eigen": "factors",
    "refit": "eigenvalues",
    "trace": "curvature trace",
    "lanczos": "smallest eigenvalue",
    "product": "solve",
}
_PADDING = 1.1  # positions computed for each token, where rows are packed


def round_flops(session: Session, plan: MixturePlan) -> float:
    """FLOPs of training on a round's mixture."""
    recipe, length = round_recipe(session, plan), session.config.data.row_length
    return cost.train_flops(session.model.cfg, recipe.steps * recipe.batch_size * length, length)


class Price:
    """FLOPs of an influence estimate, before and after."""

    def __init__(
        self,
        session: Session,
        problem: Problem,
        references: dict[str, Sample],
        spread: dict[str, Sample],
        curvature: Sequence[Placed],
    ):
        options = session.config.influence
        self._cfg, self._length = session.model.cfg, session.config.data.row_length
        self._packed = session.config.data.max_segments > 1
        self._needs, self._options = needs_of(options.estimator), options
        self._R, self._n = len(references), len(session.names)
        parts = (options.uncovered == "diagonal") + (options.important < 1)
        self._parts = parts * self._needs.parts
        self._chunk = options.tangents or max(self._R, self._n)
        self._held, self._spread = _positions(references), _positions(spread)
        self._batches = _batches(references), _batches(spread)
        curved = sum(part.positions for part in curvature)
        self._curved = cost.Examples(curved, self._length, sum(map(len, curvature)))
        self._matrices = _matrices(problem, trained_shapes(session), options.max_factor)
        self._read = self._matrices if cost.left_out(options) else None

    def paid(
        self,
        scored: Sequence[Mapping[str, Sample]],
        given: Sequence[Mapping[str, Sample]],
        products: int,
    ) -> float:
        """What it cost to score these of the given stages, with ``products`` a solve."""
        return sum(self.work(scored, given, products).values())

    def work(
        self,
        scored: Sequence[Mapping[str, Sample]],
        given: Sequence[Mapping[str, Sample]],
        products: int,
    ) -> dict[str, float]:
        """The same by phase, under the names that ``estimate`` tells its progress by."""
        found = self._fixed(products)
        found["domain gradients"] = self._gradient(sum(map(_positions, given)))
        scores = self._scores(sum(map(_positions, scored)), self._R, self._parts)
        return found | {"training scores": scores}

    def steps(self, stages: Sequence[Mapping[str, Sample]]) -> dict[str, int]:
        """How many batches a phase of these stages takes, where it is told sample by sample."""
        solved, moved = len(self._chunks(self._R)), len(self._chunks(self._n))
        return {
            "domain gradients": sum(map(_batches, stages)),
            "training scores": sum(map(_batches, stages)) * solved,
            "reference gradients": self._batches[0],
            "reference scores": self._batches[1] * moved,
            "solve": self._options.iterations * (solved + moved),
        }

    def affordable(self, flops: float) -> float:
        """Training tokens that can be scored for ``flops``; some padding is allowed for."""
        each = self._scores(_PADDING, self._R, self._parts) + self._gradient(_PADDING)
        return max(flops - sum(self._fixed(self._options.iterations).values()), 0.0) / each

    def _fixed(self, products: int) -> dict[str, float]:
        """What does not depend on the stages, by phase."""
        cfg, needs, x, matrices = self._cfg, self._needs, self._curved, self._matrices
        parts = [cost.fit_flops(cfg, needs, self._options, x, matrices)]
        for size in (*self._chunks(self._R), *self._chunks(self._n)):
            parts.append(cost.solve_flops(cfg, needs, x, matrices, size, products))
        found: dict[str, float] = {}
        for part in parts:
            for name, flops in part.items():
                phase = _PHASES.get(name, name)
                found[phase] = found.get(phase, 0.0) + flops
        return found | {
            "reference gradients": self._gradient(self._held),
            "reference scores": self._scores(self._spread, self._n),
        }

    def _chunks(self, vectors: int) -> list[int]:
        """How many of so many vectors are solved for and scored at one time."""
        return [min(self._chunk, vectors - start) for start in range(0, vectors, self._chunk)]

    def _gradient(self, tokens: float) -> float:
        return cost.gradient_flops(self._cfg, self._length, tokens, self._read)

    def _scores(self, tokens: float, solutions: int, parts: int = 0) -> float:
        """Along so many solutions, a chunk at a time, and each chunk's parts."""
        sizes = [size + parts for size in self._chunks(solutions)]
        how: dict[str, Any] = {"packed": self._packed, "matrices": self._read}
        return sum(cost.score_flops(self._cfg, self._length, tokens, r, **how) for r in sizes)


def _matrices(problem: Problem, params: Any, max_factor: int) -> list[cost.Matrix]:
    """The dense layers with Kronecker factors."""
    shapes = {leaf_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
    owners = input_owners(problem) if problem.taps else {}
    found = []
    for leaf, owner in owners.items():
        *stacked, i, o = shapes[leaf]
        blocks = block_width(i, max_factor), block_width(o, max_factor)
        found.append(cost.Matrix(math.prod(stacked), i, o, blocks, owner == leaf))
    return found


def _batches(samples: Mapping[str, Sample]) -> int:
    return sum(len(sample.batches) for sample in samples.values())


def _positions(samples: Mapping[str, Sample]) -> int:
    """Tokens of all the samples, padding included."""
    return sum(sample.batches.positions for sample in samples.values())  # type: ignore[attr-defined]
