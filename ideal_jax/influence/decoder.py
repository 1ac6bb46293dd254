"""The decoder as a ``Problem``.

Losses are per example, one or several in a row (``data.packed_batches``). What squares the gradient
of an example, the curvature, wants one in a row (``data.example_batches``).
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from ideal_jax.errors import UserError
from ideal_jax.influence.problem import Problem, TapLayer, Taps
from ideal_jax.models import TAPS, Decoder, Directions, decoder_nll, forward_mode, lora
from ideal_jax.taps import Tap

Batch = Mapping[str, Any]


@functools.cache
def decoder_problem(model: Decoder, layers: str = "all", max_factor: int = 8192) -> Problem:
    """Next-token loss of a decoder, with taps on its dense layers.

    Whatever kernel trains the decoder, this one's attention has every derivative; scores need none
    but the first, in reverse, and come from the kernel that trains.

    Args:
      model: the decoder.
      layers: which dense layers get Kronecker factors: "all", "mlp" or a regular expression
        searched in their path, such as ``layers/attention/[qk]``.
      max_factor: an untied head with a wider vocabulary is not tapped.

    Raises:
      UserError: ``layers`` is no regular expression or matches no layer.
    """
    taps = _taps(model, layers, max_factor)
    as_trained = decoder_nll(model)
    model = Decoder(forward_mode(model.cfg), model.origin)

    def outputs(params: Any, batch: Batch) -> jax.Array:
        logits_BxTxV: Any = model.apply(
            {"params": lora.all_params(params, batch)},
            batch["tokens"],
            batch["positions"],
            batch["segments"],
        )
        return logits_BxTxV

    def loss(logits_BxTxV: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        chosen = jnp.take_along_axis(logits_BxTxV, batch["targets"][..., None], axis=-1)[..., 0]
        nll_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1) - chosen
        weights_BxT = batch["weights"].astype(nll_BxT.dtype)
        return _by_example(nll_BxT * weights_BxT, batch), _by_example(weights_BxT, batch)

    nll = decoder_nll(model)

    def losses(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        nll_BxT = nll(params, batch)
        weights_BxT = batch["weights"].astype(nll_BxT.dtype)
        return _by_example(nll_BxT * weights_BxT, batch), _by_example(weights_BxT, batch)

    def scores(params: Any, tangents: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        def total(steps_RxBxU: jax.Array) -> tuple[jax.Array, jax.Array]:
            nll_BxT = as_trained(params, batch, Directions(tangents, steps_RxBxU))
            weights_BxT = batch["weights"].astype(nll_BxT.dtype)
            return jnp.sum(nll_BxT * weights_BxT), weights_BxT

        R, (B, T) = len(jax.tree.leaves(tangents)[0]), batch["tokens"].shape
        one_each = batch["examples"].shape[1] == 1
        wide = jnp.promote_types(model.cfg.param_dtype, jnp.float32)
        steps_RxBxU = jnp.zeros((R, B, 1 if one_each else T), wide)
        scores_RxBxU, weights_BxT = jax.grad(total, has_aux=True)(steps_RxBxU)
        weights = _by_example(weights_BxT, batch)
        if one_each:
            return scores_RxBxU[..., 0], weights
        return jax.vmap(lambda x_BxT: _by_example(x_BxT, batch))(scores_RxBxU), weights

    def sample_labels(logits_BxTxV: jax.Array, batch: Batch, key: jax.Array) -> dict[str, Any]:
        # Keyed by (domain, item, position): padding, packing and batch size change nothing.
        def row(domain: jax.Array, item: jax.Array, logits_TxV: jax.Array) -> jax.Array:
            mine = jax.random.fold_in(jax.random.fold_in(key, domain), item)
            keys_T = jax.vmap(lambda t: jax.random.fold_in(mine, t))(
                jnp.arange(logits_TxV.shape[0])
            )
            return jax.vmap(jax.random.categorical)(keys_T, logits_TxV)

        labels = jax.vmap(row)(batch["domains"], batch["examples"][:, 0], logits_BxTxV)
        return {**batch, "targets": labels, "weights": jnp.sqrt(batch["weights"])}

    return Problem(outputs, loss, sample_labels, taps=taps, losses=losses, scores=scores)


def _by_example(x_BxT: jax.Array, batch: Batch) -> jax.Array:
    """Sums over each example's tokens, [B·S], in the order of ``batch["examples"]``."""
    numbers_S = 1 + jnp.arange(batch["examples"].shape[1])
    own_BxTxS = batch["segments"][..., None] == numbers_S
    return jnp.sum(jnp.where(own_BxTxS, x_BxT[..., None], 0), axis=1).reshape(-1)


def _taps(model: Decoder, layers: str, max_factor: int) -> Taps:
    def run(params: Any, taps: Mapping[str, Tap], batch: Batch) -> jax.Array:
        tapped = {f"{name}/tap": tap for name, tap in taps.items()}
        logits_BxTxV: Any = model.apply(
            {
                "params": lora.all_params(params, batch),
                TAPS: traverse_util.unflatten_dict(tapped, sep="/"),
            },
            batch["tokens"],
            batch["positions"],
            batch["segments"],
        )
        return logits_BxTxV

    names = _chosen(model, layers, max_factor)
    first: dict[str, str] = {}  # the chosen layer that reads an input, by the input's name
    owners = {name: first.setdefault(_input_of(name), name) for name in names}
    return Taps(
        run=run,
        mask=lambda batch: batch["segments"] > 0,
        layers=tuple(
            TapLayer(
                name,
                (*name.split("/"), "kernel"),
                scanned=name.startswith("layers/"),
                shares=owners[name],
            )
            for name in names
        ),
    )


def _input_of(name: str) -> str:
    """A name for what a dense layer reads: q, k and v read the same, and so do gate and up."""
    return re.sub("/(q|k|v|gate|up)(/lora_a)?$", "/normalised", name)


def _chosen(model: Decoder, layers: str, max_factor: int) -> tuple[str, ...]:
    def init() -> Any:
        return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    paths = traverse_util.flatten_dict(jax.eval_shape(init), sep="/")
    if model.cfg.lora is not None:
        paths = traverse_util.flatten_dict(lora.split(jax.eval_shape(init))[1], sep="/")
    dense = [path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")]
    if model.cfg.padded_vocab > max_factor and "head" in dense:
        dense.remove("head")
    pattern = {"all": "", "mlp": "/mlp/"}.get(layers, layers)
    try:
        chosen = tuple(name for name in sorted(dense) if re.search(pattern, name))
    except re.error as error:
        raise UserError(f"influence.layers={layers!r} is no regular expression: {error}") from None
    if not chosen:
        raise UserError(f"influence.layers={layers!r} matches none of {', '.join(sorted(dense))}")
    return chosen
