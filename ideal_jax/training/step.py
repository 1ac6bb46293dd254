"""The training state and one step of it: pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ideal_jax import processes, trees
from ideal_jax.models import lora
from ideal_jax.models.loss import Batch, LossFn


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: jax.Array  # shape=(), int32: steps done
    params: Any
    opt_state: optax.OptState


class StepMetrics(NamedTuple):
    """What one step reports, as scalars."""

    loss: jax.Array  # nats per unit of weight, before the update
    grad_norm: jax.Array  # before clipping
    tokens: jax.Array  # non-padding tokens
    supervised_tokens: jax.Array
    told: jax.Array  # whether some process was told to end (``processes.Termination``)


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0. Moments are float32 at least, as the gradients that they are made of."""
    gradients = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params
    )
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(gradients))


@functools.cache  # the same function again: another training of the shape compiles nothing
def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, micro_batches: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """One optimizer step on one batch.

    The gradient is Σ∇ / Σw over the whole batch: with ``micro_batches`` > 1 both sums are
    accumulated and divided once, so the result does not depend on how examples of unequal length
    fall into micro-batches.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        told = batch.get(processes.TOLD, np.zeros(1, bool))
        batch = {name: x for name, x in batch.items() if name != processes.TOLD}
        (loss, weight), grads = accumulate(loss_fn, state.params, batch, micro_batches)
        weight = jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)
        grads = trees.scale(grads, 1.0 / weight)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(
            loss / weight,
            optax.tree.norm(grads),
            jnp.sum(batch["segments"] > 0),
            jnp.sum(batch["weights"] > 0),
            jnp.any(told),
        )
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def accumulate(
    loss_fn: LossFn, params: Any, batch: Batch, micro_batches: int
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """((Σℓ, Σw), Σ∇ℓ) over a batch, ``micro_batches`` slices of the rows at a time."""
    batch, frozen = lora.rows_and_frozen(batch)

    def grad(rows: Batch) -> tuple[tuple[jax.Array, jax.Array], Any]:
        whole = lora.with_frozen(rows, frozen)
        return jax.value_and_grad(loss_fn, has_aux=True)(params, whole)

    if micro_batches == 1:
        return grad(batch)

    def split(x: jax.Array) -> jax.Array:
        # Row b goes to micro-batch b % A: every device keeps its own rows.
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, rows: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad(rows)), None

    slices = {name: split(x) for name, x in batch.items()}
    shapes = jax.eval_shape(grad, {name: x[0] for name, x in slices.items()})
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, slices)[0]
