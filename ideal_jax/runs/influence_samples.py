"""Which examples an influence is measured on, as batches on the mesh."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ideal_jax import sharding
from ideal_jax.data import RowBatches, example_batches, packed_batches
from ideal_jax.influence import Sample
from ideal_jax.mixture import MixturePlan, MixtureState, permutation
from ideal_jax.models.lora import with_frozen
from ideal_jax.runs.evaluate_run import reference_halves
from ideal_jax.runs.session import Session

# Salts of the permutations that draw the scored and the curvature examples.
_SCORE_SALT, _CURVATURE_SALT = 102, 103
_FIRST = 16  # examples of each domain in the first stage of a sample chosen by the data


class Placed(Sequence[Any]):
    """Batches, put on the mesh when they are asked for."""

    def __init__(self, session: Session, batches: RowBatches, frozen: Any):
        self._mesh, self._batches, self._frozen = session.mesh, batches, frozen

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        return with_frozen(sharding.place(self._mesh, self._batches[number]), self._frozen)

    @property
    def positions(self) -> int:
        """Tokens that are computed, padding included."""
        return self._batches.positions

    @property
    def items(self) -> np.ndarray:
        """The item of every example, in order; -1 where there is none."""
        return self._batches.items


class Stages(NamedTuple):
    """Training examples to score, part after part.

    Attributes:
      parts: for each stage, by domain, the examples that it adds.
      limited: whether the budget, not the data, ends them.
    """

    parts: list[dict[str, Sample]]
    limited: bool


def reference_samples(session: Session, frozen: Any, most: int) -> dict[str, Sample]:
    """At most ``most`` of the half of every reference set that ∇Q is taken over.

    Here as everywhere, ``frozen`` are the model's parameters that are not trained.
    """
    samples = {}
    for j, domain in enumerate(session.names):
        items = reference_halves(session, j)[0][:most]
        samples[domain] = Sample(_packed(session, frozen, "reference", j, items), len(items))
    return samples


def training_stages(
    session: Session, frozen: Any, state: MixtureState, plan: MixturePlan, tokens: float
) -> Stages:
    """What may be scored of every domain's current multiset.

    With ``influence.fraction`` that share, at once. By the data (0.0): stages that double what has
    been scored, drawn in one order, until about ``tokens`` tokens are spent.
    """
    fraction = session.config.influence.fraction
    if fraction:
        drawn = [min(c, max(2, round(fraction * c))) for c in state.counts.tolist()]
        return Stages([_part(session, frozen, state, plan, [0] * len(drawn), drawn)], False)
    lengths = [session.data.train[d].lengths[plan.items(j)] for j, d in enumerate(session.names)]
    mean = np.array([x.mean() for x in lengths])
    counts = np.asarray(state.counts)
    parts: list[dict[str, Sample]] = []
    before = np.zeros_like(counts)
    share = _FIRST * len(counts) / counts.sum()
    while np.any(before < counts):
        after = np.minimum(counts, np.maximum(_FIRST, np.ceil(share * counts).astype(int)))
        left = tokens - float(before @ mean)
        added = float((after - before) @ mean)
        limited = bool(parts) and added > left
        if limited:
            after = before + np.floor((after - before) * max(left, 0.0) / added).astype(int)
            if np.all(after - before < _FIRST / 2):
                return Stages(parts, True)
        parts.append(_part(session, frozen, state, plan, before.tolist(), after.tolist()))
        if limited:
            return Stages(parts, True)
        before, share = after, 2 * share
    return Stages(parts, False)


def curvature_batches(
    session: Session, frozen: Any, state: MixtureState, plan: MixturePlan
) -> Iterator[Placed]:
    """Single examples drawn evenly from the whole multiset, by domain."""
    owners = np.repeat(np.arange(len(session.names)), state.counts)
    items = np.concatenate([plan.items(j) for j in range(len(session.names))])
    order = permutation(len(items), session.config.seed, state.round, _CURVATURE_SALT)
    chosen = np.sort(order[: session.config.influence.curvature_examples])
    for j, domain in enumerate(session.names):
        mine = chosen[owners[chosen] == j]
        if len(mine):
            batches = example_batches(
                session.data.train[domain],
                items[mine],
                j,
                batch_size=session.rows(session.config.influence.batch_size),
                lengths=session.widths,
                reduction=session.config.loss.reduction,
            )
            yield Placed(session, batches, frozen)


def domain_weights(session: Session, plan: MixturePlan) -> np.ndarray:
    """float64[n]: W_j of a mixture, supervised tokens or examples."""
    stores = [session.data.train[domain] for domain in session.names]
    if session.config.loss.reduction == "example":
        return np.asarray(plan.counts, np.float64)
    return np.array([float(x.supervised[plan.items(j)].sum()) for j, x in enumerate(stores)])


def _part(
    session: Session,
    frozen: Any,
    state: MixtureState,
    plan: MixturePlan,
    before: Sequence[int],
    after: Sequence[int],
) -> dict[str, Sample]:
    """Examples ``before[j]`` to ``after[j]`` of domain j, with the weight of the whole domain."""
    weights, samples = domain_weights(session, plan), {}
    for j, domain in enumerate(session.names):
        items = plan.items(j)
        order = permutation(len(items), session.config.seed, j, state.round, _SCORE_SALT)
        chosen = np.sort(order[before[j] : after[j]])
        batches = _packed(session, frozen, "train", j, items[chosen])
        samples[domain] = Sample(batches, len(items), len(chosen), float(weights[j]))
    return samples


def _packed(session: Session, frozen: Any, split: str, domain: int, items: np.ndarray) -> Placed:
    config = session.config
    batches = packed_batches(
        getattr(session.data, split)[session.names[domain]],
        items,
        domain,
        batch_size=session.rows(config.influence.batch_size),
        row_length=config.data.row_length,
        max_segments=config.data.max_segments,
        reduction=config.loss.reduction,
    )
    return Placed(session, batches, frozen)
