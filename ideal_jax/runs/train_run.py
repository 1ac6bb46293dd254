"""One supervised fine-tuning from M_0 on a given mixture, and M_0 itself."""

import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from ideal_jax import sharding, training, trees
from ideal_jax.data import TokenStore, generic_store, packed_rows, training_batches
from ideal_jax.mixture import MixturePlan
from ideal_jax.runs import cost, processes
from ideal_jax.runs.session import Session, abstract_params, model_shape, random_params
from ideal_jax.runs.workdir import read_json, write_json
from ideal_jax.training.checkpoints import load_params, save_params


class Recipe(NamedTuple):
    """One training, not yet done: what doing it and replaying it have in common."""

    loss_fn: Any
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[int], Any]
    batches: grain.MapDataset  # element s is this process's rows of the batch of step s
    rows: int  # of the plan, packed
    batch_size: int
    steps: int
    micro_batches: int


class Trained(NamedTuple):
    """The end of one training."""

    state: training.TrainState
    record: dict[str, Any]  # steps, tokens, flops, seconds, params_sha256

    @property
    def params(self) -> Any:
        """The final parameters."""
        return self.state.params


def round_recipe(
    session: Session,
    plan: MixturePlan,
    *,
    weights: Sequence[float] | None = None,
    order: int = 0,
    steps: int = 0,
) -> Recipe:
    """The SFT of a round.

    Args:
      session: of the run.
      plan: the round's mixture.
      weights: what a supervised token of each domain counts in the loss; None: 1 each.
      order: which of the endless row orders; 0 is that of the run itself.
      steps: instead of what the config says.
    """
    stores = [session.data.train[domain] for domain in session.names]
    seed = session.config.seed + (order << 32)
    recipe = _recipe(session, session.config.training, plan, stores, seed, steps)
    if weights is None:
        return recipe
    factors = np.asarray(weights, np.float32)
    return recipe._replace(batches=recipe.batches.map(lambda batch: weighted(batch, factors)))


def weighted(batch: Mapping[str, Any], weights_n: Any) -> dict[str, Any]:
    """The batch with the loss weights of domain j's tokens times ``weights_n[j]``."""
    return {**batch, "weights": batch["weights"] * weights_n[batch["domains"]][:, None]}


def train_round(
    session: Session,
    plan: MixturePlan,
    folder: pathlib.Path,
    name: str,
    recipe: Recipe | None = None,
) -> Trained:
    """Trains M_0 on ``plan`` in ``folder``; continues or just restores what is there.

    The final parameters lie in ``folder`` as a ``model.init`` for other runs.
    """
    recipe = recipe or round_recipe(session, plan)
    return _train(session, recipe, base_params(session), folder, name)


def base_params(session: Session) -> Any:
    """The parameters of M_0 on the mesh, made once per work directory."""
    config, mesh, model = session.config, session.mesh, session.model
    shape = model_shape(model)
    abstract = abstract_params(model, mesh)
    if config.model.init != "random":
        return load_params(pathlib.Path(config.model.init), abstract, shape)
    if config.base.steps == 0:
        return random_params(model, mesh, config.seed)
    folder = session.workdir.path / "base"
    if processes.agree((folder / "train.json").exists()):
        params = load_params(folder, abstract, shape)
    else:
        params = _train_base(session, folder)
    # Not behind the training: a kill between its record and this would leave them for good.
    if processes.is_writer():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return params


def _train_base(session: Session, folder: pathlib.Path) -> Any:
    config = session.config
    stores = _base_stores(session)
    sizes = tuple(len(store) for store in stores)
    options = ConfigDict({**config.training.to_dict(), **config.base.to_dict(), "micro_batches": 1})
    plan = MixturePlan(sizes, sizes, config.seed)
    recipe = _recipe(session, options, plan, stores, config.seed)
    if config.data.root:
        recipe = recipe._replace(batches=recipe.batches.map(_all_targets))
    start = random_params(session.model, session.mesh, config.seed)
    return _train(session, recipe, start, folder, "base").params


def _base_stores(session: Session) -> list[TokenStore]:
    """Generic primitives for the built-in capabilities; for real data its own training text."""
    config, data = session.config, session.data
    if config.data.root:
        return [data.train[name] for name in session.names]
    if processes.is_writer():
        generic_store(data, config.base.examples, config.seed, config.data.row_length)
    processes.barrier("base data")
    return [generic_store(data, config.base.examples, config.seed, config.data.row_length)]


def _recipe(
    session: Session,
    options: Any,
    plan: MixturePlan,
    stores: list[TokenStore],
    seed: int,
    steps: int = 0,
) -> Recipe:
    config, data = session.config, session.config.data
    table = packed_rows(plan, stores, data.row_length, data.max_segments, data.window)
    passes = math.ceil(options.epochs * len(table) / options.batch_size)
    steps = steps or options.steps or passes
    return Recipe(
        loss_fn=training.decoder_loss(session.model, config.loss.block),
        optimizer=training.adamw(FrozenConfigDict(options), steps),
        learning_rate=training.schedule(options, steps),
        batches=training_batches(
            table,
            stores,
            batch_size=options.batch_size,
            row_length=data.row_length,
            max_segments=data.max_segments,
            seed=seed,
            reduction=config.loss.reduction,
            rows=sharding.local_rows(session.mesh, options.batch_size),
        ),
        rows=len(table),
        batch_size=options.batch_size,
        steps=steps,
        micro_batches=options.micro_batches,
    )


def _train(
    session: Session, recipe: Recipe, params: Any, folder: pathlib.Path, name: str
) -> Trained:
    config, steps = session.config, recipe.steps
    with session.reporter.phase(name) as advance:
        result = training.train(
            mesh=session.mesh,
            loss_fn=recipe.loss_fn,
            optimizer=recipe.optimizer,
            learning_rate=recipe.learning_rate,
            params=params,
            batches=recipe.batches,
            batch_size=recipe.batch_size,
            steps=steps,
            micro_batches=recipe.micro_batches,
            folder=folder,
            log_every=config.training.log_every,
            checkpoint_every=config.training.checkpoint_every,
            prefetch=config.data.prefetch,
            progress=lambda step, m: advance(step, steps, f"loss {m['loss']:.3f}"),
        )
    file = folder / "train.json"
    if processes.agree(file.exists()):
        return Trained(result.state, read_json(file))
    positions = steps * recipe.batch_size * config.data.row_length
    record = {
        "steps": steps,
        "rows": recipe.rows,
        "tokens": result.tokens,
        "supervised_tokens": result.supervised_tokens,
        "flops": cost.train_flops(session.model.cfg, positions, config.data.row_length),
        "seconds": result.seconds,
        "params_sha256": trees.digest(sharding.fetch(result.state.params)),
    }
    save_params(folder, result.state.params, model_shape(session.model))
    processes.barrier(f"{name} record")
    write_json(file, record)
    processes.barrier(f"{name} recorded")
    return Trained(result.state, record)


def _all_targets(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every real token is a target: plain language modelling."""
    return {**batch, "weights": (batch["segments"] > 0).astype(np.float32)}
