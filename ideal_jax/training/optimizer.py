"""AdamW with warm-up and decay."""

import functools
from typing import Any

import jax
import optax
from ml_collections import FrozenConfigDict

from ideal_jax.errors import UserError


def schedule(config: Any, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine, linear or constant.

    Args:
      config: ``learning_rate``, ``warmup`` (share of the steps), ``schedule``,
        ``final_learning_rate`` (share of the peak at the last step).
      steps: length of the run.
    """
    peak, warm = config.learning_rate, round(config.warmup * steps)
    rest, end = max(steps - warm, 1), config.final_learning_rate
    decays = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=end),
        "linear": optax.linear_schedule(peak, peak * end, rest),
        "constant": optax.constant_schedule(peak),
    }
    if config.schedule not in decays:
        raise UserError(f"training.schedule={config.schedule!r} is not one of {', '.join(decays)}")
    if not warm:
        return decays[config.schedule]
    ramp = optax.linear_schedule(peak / warm, peak, warm - 1) if warm > 1 else (lambda _: peak)
    return optax.join_schedules([ramp, decays[config.schedule]], [warm])


def second_moment(opt_state: optax.OptState, beta2: float) -> Any:
    """v̂, the bias-corrected mean of squared gradients, from the state of ``adamw``."""
    found = [
        s
        for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState))
        if isinstance(s, optax.ScaleByAdamState)
    ]
    correction = 1 - beta2 ** found[0].count
    return jax.tree.map(lambda v: v / correction, found[0].nu)


@functools.cache
def adamw(config: FrozenConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; matrices decay, norms do not."""

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            # Far below any square that counts, and enough for √v to have a derivative at v = 0.
            eps_root=1e-30,
            mu_dtype=config.moment_dtype or None,
            weight_decay=config.weight_decay,
            mask=matrices,
        ),
    )
