"""The objective: summed, weighted next-token loss, from logits of some positions at a time."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ideal_jax.models import lora
from ideal_jax.models.attention import soft_capped
from ideal_jax.models.decoder import Decoder, output_directions, output_matrix, times
from ideal_jax.models.readings import Directions, along
from ideal_jax.sharding import constrain

Batch = Mapping[str, Any]  # arrays; frozen parameters if there are any (``models.lora``)
_policies = jax.checkpoint_policies
# (params, batch) -> (Σ c·nll [nats], Σ c [weight])
LossFn = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


def blocked_nll(
    h_BxTxD: jax.Array,
    head_DxV: jax.Array,
    targets_BxT: jax.Array,
    vocab_size: int,
    block: int,
    softcap: float = 0.0,
    keep_logits: bool = False,
    directions: Directions | None = None,
) -> jax.Array:
    """−log p(target) in nats, BxT, one block of positions at a time.

    Logits exist for one block only and are recomputed in the backward pass, unless they are kept.
    On a mesh each device has some entries of the vocabulary for all rows of its replica: hidden
    states are gathered block by block, and the output matrix and its gradient never.
    In pure JAX, so the loss has every derivative in forward and reverse mode.

    Args:
      h_BxTxD: last hidden states.
      head_DxV: output matrix, V padded.
      targets_BxT: next tokens, below ``vocab_size``.
      vocab_size: real vocabulary; padded entries get no probability.
      block: positions per block; T is padded up to a multiple.
      softcap: of the logits; 0: none.
      keep_logits: those of all blocks stay for the backward pass, which computes none again.
      directions: of the output matrix, to be read.
    """
    T = h_BxTxD.shape[1]
    block = min(block, T)
    blocks = -(-T // block)

    def split(x: jax.Array, axis: int) -> jax.Array:
        x = jnp.pad(x, [(0, blocks * block - T if i == axis else 0) for i in range(x.ndim)])
        x = x.reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    head = constrain(head_DxV.astype(h_BxTxD.dtype), None, "loss_vocab")
    xs = [split(h_BxTxD, 1), split(targets_BxT, 1)]
    if directions is not None:
        steps = directions.steps
        whole_rows = steps.shape[2] == 1
        xs.append(jnp.stack([steps] * blocks) if whole_rows else split(steps, 2))
        tangents_RxDxV = constrain(directions.tangents, None, None, "loss_vocab")

    def one(h_BxCxD: jax.Array, targets_BxC: jax.Array, *steps_RxBxU: jax.Array) -> jax.Array:
        h_BxCxD = constrain(h_BxCxD, "loss_batch", None, None)
        logits = constrain(times(head, h_BxCxD), "loss_batch", None, "loss_vocab")
        if directions is not None:
            logits = along(times, logits, h_BxCxD, tangents_RxDxV, *steps_RxBxU)
        # As a matrix: XLA:CPU lets the derivative take the place of the logits in no other shape.
        nll_BxC = nll(logits.reshape(-1, logits.shape[-1]), targets_BxC.reshape(-1))
        return constrain(nll_BxC.reshape(targets_BxC.shape), "batch", None)

    # Of the way from logits to the loss their normaliser alone is kept.
    @functools.partial(jax.checkpoint, policy=_policies.save_only_these_names("normaliser"))
    def nll(logits: jax.Array, targets: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        logits = soft_capped(logits, softcap)
        if logits.shape[-1] > vocab_size:
            real = jnp.arange(logits.shape[-1]) < vocab_size
            logits = jnp.where(real, logits, jnp.finfo(logits.dtype).min)
        return _nll(logits, targets)

    body = one if keep_logits else jax.checkpoint(one)
    _, nll_NxBxC = jax.lax.scan(lambda _, x: (None, body(*x)), None, tuple(xs))
    return nll_NxBxC.swapaxes(0, 1).reshape(-1, blocks * block)[:, :T]


@jax.custom_jvp
def _nll(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−log softmax at the targets, [...]; logits [..., V].

    Its derivative is written out: one pass over the logits, which it can overwrite.
    """
    at_target = _over_vocabulary(jnp.sum, jnp.where(_is_target(logits, targets), logits, 0))
    return _normaliser(logits) - at_target


@_nll.defjvp
def _nll_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    logits, targets = primals
    normaliser = checkpoint_name(_normaliser(logits), "normaliser")
    derivative = jnp.exp(logits - normaliser[..., None]) - _is_target(logits, targets)
    return _nll(logits, targets), jnp.sum(derivative * tangents[0], axis=-1)


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.arange(logits.shape[-1]) == targets[..., None]


def _normaliser(logits: jax.Array) -> jax.Array:
    """log Σ exp over the vocabulary, [...]."""
    greatest = _over_vocabulary(jnp.max, jax.lax.stop_gradient(logits))
    return greatest + jnp.log(_over_vocabulary(jnp.sum, jnp.exp(logits - greatest[..., None])))


def _over_vocabulary(reduce: Any, x: jax.Array) -> jax.Array:
    """``reduce`` over the last axis. XLA:CPU splits a long reduction, but first writes all of x."""

    def in_stages(x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], math.gcd(x.shape[-1], 32), -1)
        # Without the barrier XLA makes one reduction of both.
        return reduce(jax.lax.optimization_barrier(reduce(x, axis=-2)), axis=-1)

    at_once = functools.partial(reduce, axis=-1)
    return jax.lax.platform_dependent(x, cpu=in_stages, default=at_once)


def decoder_nll(model: Decoder, block: int = 128) -> Callable[..., jax.Array]:
    """(params, batch, directions=None) -> nll_BxT of a decoder."""

    def nll(params: Any, batch: Batch, directions: Directions | None = None) -> jax.Array:
        params = lora.all_params(params, batch)
        h_BxTxD: Any = model.apply(
            {"params": params, **(directions.variables if directions else {})},
            batch["tokens"],
            batch["positions"],
            batch["segments"],
            method=Decoder.hidden,
            rngs=_dropout(batch),
        )
        cfg = model.cfg
        return blocked_nll(
            h_BxTxD,
            output_matrix(cfg, params),
            batch["targets"],
            cfg.vocab_size,
            block,
            cfg.logit_softcap,
            keep_logits=cfg.remat == "none",
            directions=directions and output_directions(cfg, directions),
        )

    return nll


@functools.cache
def decoder_loss(model: Decoder, block: int = 128) -> LossFn:
    """The summed loss Σ_t c_t·nll_t and its weight Σ_t c_t over a batch.

    The weights c_t ride in ``batch["weights"]``: 1 per supervised token (reduction "token") or
    1/n_x per supervised token of an example with n_x of them (reduction "example"), 0 elsewhere.
    """
    nll = decoder_nll(model, block)

    def loss(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        weights = batch["weights"]
        return jnp.sum(nll(params, batch) * weights), jnp.sum(weights)

    return loss


@functools.cache
def example_losses(model: Decoder, block: int = 128) -> Callable[[Any, Batch], tuple[Any, Any]]:
    """(params, batch) -> (ℓ_B, w_B) for batches with one example per row."""
    nll = decoder_nll(model, block)

    def losses(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        weights = batch["weights"]
        return jnp.sum(nll(params, batch) * weights, axis=1), jnp.sum(weights, axis=1)

    return losses


def _dropout(batch: Batch) -> dict[str, jax.Array] | None:
    """A key made of the (step, row) of the batch's first row; without one nothing is dropped."""
    if "dropout" not in batch:
        return None
    step, row = batch["dropout"][0]
    return {"dropout": jax.random.fold_in(jax.random.key(step), row)}
