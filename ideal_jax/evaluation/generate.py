"""Greedy generation with a key/value cache."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ideal_jax import sharding
from ideal_jax.models import Decoder, empty_cache, output_matrix


@functools.cache
def make_generate(model: Decoder, *, max_new_tokens: int, end_id: int) -> Callable[..., jax.Array]:
    """A pure function (params, prompts_BxT, lengths_B) -> new tokens BxN.

    N = ``max_new_tokens``; after ``end_id`` a row repeats it. Prompts are padded to the right:
    row b is ``prompts[b, :lengths[b]]`` and generation goes on at position ``lengths[b]``.
    """

    # A tied output matrix is turned once, and not for every token.
    own_head = Decoder(dataclasses.replace(model.cfg, tie_embeddings=False), model.origin)

    def generate(params: Any, prompts_BxT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        B, T = prompts_BxT.shape
        cache = empty_cache(model.cfg, B, T + max_new_tokens)

        params = {**params, "head": {"kernel": output_matrix(model.cfg, params)}}
        apply: Any = functools.partial(own_head.apply, {"params": params})
        logits_BxV, cache = apply(prompts_BxT, lengths_B, cache, method=Decoder.prefill)
        first_B = jnp.argmax(logits_BxV, axis=-1)
        out_BxN = jnp.full((B, max_new_tokens), end_id, prompts_BxT.dtype)

        def going(carry: Any) -> jax.Array:
            n, next_B, *_ = carry
            return (n < max_new_tokens) & jnp.any(next_B != end_id)

        def step(carry: Any) -> Any:
            n, next_B, out_BxN, cache = carry
            out_BxN = out_BxN.at[:, n].set(next_B)
            here_Bx1 = (lengths_B + n)[:, None]
            logits, cache = apply(next_B[:, None], here_Bx1, cache, method=Decoder.decode)
            new_B = jnp.argmax(logits[:, 0], axis=-1)
            return n + 1, jnp.where(next_B == end_id, end_id, new_B), out_BxN, cache

        return jax.lax.while_loop(going, step, (0, first_B, out_BxN, cache))[2]

    return generate


def generate_all(
    generate: Callable[..., jax.Array],
    mesh: jax.sharding.Mesh,
    params: Any,
    prompts: Sequence[np.ndarray],
    *,
    batch_size: int,
    widths: Sequence[int],
    end_id: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index of the prompt, its new tokens up to ``end_id``), shortest prompts first.

    Args:
      generate: the jitted result of ``make_generate``.
      prompts: token ids; one longer than the largest of ``widths`` keeps its end.
      batch_size: prompts at a time, a multiple of the ways the batch is split.
      widths: lengths to pad to, ascending.
    """
    order = np.argsort([len(p) for p in prompts], kind="stable")
    for low in range(0, len(order), batch_size):
        chosen = order[low : low + batch_size]
        longest = max(len(prompts[i]) for i in chosen)
        width = next((w for w in widths if w >= longest), widths[-1])
        tokens = np.full((batch_size, width), end_id, np.int32)
        lengths = np.ones(batch_size, np.int32)
        for row, index in enumerate(chosen):
            prompt = prompts[index][-width:]
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        placed = sharding.place(mesh, {"tokens": tokens, "lengths": lengths})
        with jax.set_mesh(mesh):
            new = sharding.fetch(generate(params, placed["tokens"], placed["lengths"]))
        for row, index in enumerate(chosen):
            stop = np.flatnonzero(new[row] == end_id)
            yield int(index), new[row, : stop[0]] if len(stop) else new[row]
