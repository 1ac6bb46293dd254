"""Loss per capability with its standard error."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ideal_jax import sharding

ExampleLosses = Callable[[Any, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]


class Losses(NamedTuple):
    """Per-example sums of one domain, in the order of ``items``."""

    items: np.ndarray  # int64[E], item number in the domain's store
    loss: np.ndarray  # float64[E], Σ c·nll in nats
    weight: np.ndarray  # float64[E], Σ c

    def take(self, keep: np.ndarray) -> "Losses":
        """The examples whose item number is in ``keep``, in the order of these numbers."""
        order = np.argsort(self.items, kind="stable")
        order = order[np.isin(self.items[order], keep)]
        return Losses(self.items[order], self.loss[order], self.weight[order])

    def mean(self) -> float:
        """Q = Σℓ / Σw, nats per unit of weight."""
        return float(self.loss.sum() / self.weight.sum())

    def stderr(self) -> float:
        """Standard error of Q as a ratio of means over examples."""
        count = len(self.loss)
        if count < 2:
            return math.nan
        residual = self.loss - self.mean() * self.weight
        return float(residual.std(ddof=1) / (math.sqrt(count) * self.weight.mean()))


def domain_losses(
    example_losses: ExampleLosses,
    mesh: jax.sharding.Mesh,
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
) -> Losses:
    """Losses of every example of ``batches`` (one example per row; empty rows are dropped)."""
    items, losses, weights = [], [], []
    for batch in batches:
        with jax.set_mesh(mesh):
            loss, weight = sharding.fetch(example_losses(params, sharding.place(mesh, batch)))
        real = batch["examples"][:, 0] >= 0
        items.append(batch["examples"][real, 0].astype(np.int64))
        losses.append(loss[real].astype(np.float64))
        weights.append(weight[real].astype(np.float64))
    return Losses(np.concatenate(items), np.concatenate(losses), np.concatenate(weights))
