"""The objective: summed, weighted next-token loss, from logits of some positions at a time."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ideal_jax.models import Decoder, lora, output_matrix
from ideal_jax.models.attention import soft_capped

Batch = Mapping[str, Any]  # arrays; frozen parameters if there are any (``models.lora``)
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
) -> jax.Array:
    """−log p(target) in nats, BxT, one block of positions at a time.

    Logits exist for one block only and are recomputed in the backward pass, unless they are kept.
    In pure JAX, so the loss has every derivative in forward and reverse mode.

    Args:
      h_BxTxD: last hidden states.
      head_DxV: output matrix, V padded.
      targets_BxT: next tokens, below ``vocab_size``.
      vocab_size: real vocabulary; padded entries get no probability.
      block: positions per block; T is padded up to a multiple.
      softcap: of the logits; 0: none.
      keep_logits: those of all blocks stay for the backward pass, which computes none again.
    """
    B, T, D = h_BxTxD.shape
    block = min(block, T)
    blocks = -(-T // block)
    pad = blocks * block - T
    h = jnp.pad(h_BxTxD, ((0, 0), (0, pad), (0, 0))).reshape(B, blocks, block, D)
    targets = jnp.pad(targets_BxT, ((0, 0), (0, pad))).reshape(B, blocks, block)
    # Plain matrices of B·block positions, for the reason that ``Dense`` gives.
    h_NxBCxD = h.swapaxes(0, 1).reshape(blocks, B * block, D)
    targets_NxBC = targets.swapaxes(0, 1).reshape(blocks, B * block)
    head = head_DxV.astype(h.dtype)

    policy = jax.checkpoint_policies.dots_saveable if keep_logits else None

    @functools.partial(jax.checkpoint, policy=policy)
    def one(h_BCxD: jax.Array, targets_BC: jax.Array) -> jax.Array:
        logits = (h_BCxD @ head).astype(jnp.promote_types(h.dtype, jnp.float32))
        logits = soft_capped(logits, softcap)
        real = jnp.arange(logits.shape[-1]) < vocab_size
        logits = jnp.where(real, logits, jnp.finfo(logits.dtype).min)
        chosen = jnp.take_along_axis(logits, targets_BC[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    _, nll = jax.lax.scan(lambda _, x: (None, one(*x)), None, (h_NxBCxD, targets_NxBC))
    return nll.reshape(blocks, B, block).swapaxes(0, 1).reshape(B, blocks * block)[:, :T]


def decoder_nll(model: Decoder, block: int = 128) -> Callable[[Any, Batch], jax.Array]:
    """(params, batch) -> nll_BxT of a decoder."""

    def nll(params: Any, batch: Batch) -> jax.Array:
        params = lora.all_params(params, batch)
        h_BxTxD: Any = model.apply(
            {"params": params},
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
