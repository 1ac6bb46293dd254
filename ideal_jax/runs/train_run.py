"""One supervised fine-tuning from M_0 on a given mixture, and M_0 itself."""

import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from ideal_jax import processes, sealed, sharding, training, trees
from ideal_jax.data import TokenStore, generic_store, packed_rows, training_batches
from ideal_jax.data.sources import is_built_in
from ideal_jax.mixture import MixturePlan
from ideal_jax.models import abstract_params, decoder_loss, lora, random_params
from ideal_jax.runs import cost
from ideal_jax.runs.base_model import Start, adapted, frozen_folder, init_start
from ideal_jax.runs.session import Session
from ideal_jax.runs.summary import speed_line
from ideal_jax.runs.workdir import known, write_json
from ideal_jax.training.checkpoints import load_params, save_model


class Recipe(NamedTuple):
    """One training, not yet done: what doing it and replaying it have in common."""

    loss_fn: Any
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[int], Any]
    batches: grain.MapDataset  # element s is this process's rows of the batch of step s
    rows: int  # of the plan, packed
    filled: float  # share of their positions that is no padding
    batch_size: int
    steps: int
    micro_batches: int


class Trained(NamedTuple):
    """The end of one training."""

    state: training.TrainState
    record: dict[str, Any]  # steps, tokens, flops, seconds, params_sha256
    frozen: Any  # parameters that were not trained; {}: all were

    @property
    def params(self) -> Any:
        """The final parameters of those that were trained."""
        return self.state.params

    def whole(self, session: Session) -> Any:
        """All parameters of ``session.whole_model``, adapters merged."""
        return lora.merged(session.model.cfg, self.frozen, self.params)


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
    adapters = session.model.cfg.lora
    if adapters is not None and adapters.dropout:
        recipe = recipe._replace(batches=recipe.batches.map_with_index(_with_dropout))
    if weights is None:
        return recipe
    factors = np.asarray(weights, np.float32)
    return recipe._replace(batches=recipe.batches.map(lambda batch: weighted(batch, factors)))


def _with_dropout(step: int, batch: Mapping[str, Any]) -> dict[str, Any]:
    """(step, row) for every row: what decides which inputs of adapters are dropped."""
    rows = np.arange(len(batch["tokens"]))
    return {**batch, "dropout": np.stack([np.full_like(rows, step), rows], 1).astype(np.uint32)}


def weighted(batch: Mapping[str, Any], weights_n: Any) -> dict[str, Any]:
    """The batch with the loss weights of domain j's tokens times ``weights_n[j]``."""
    return {**batch, "weights": batch["weights"] * weights_n[batch["domains"]][:, None]}


def train_round(
    session: Session,
    plan: MixturePlan,
    folder: pathlib.Path,
    name: str,
    recipe: Recipe | None = None,
    rewrite: bool = False,
) -> Trained:
    """Trains M_0 on ``plan`` in ``folder``; continues or just restores what is there.

    The final parameters lie in ``folder`` as a ``model.init`` for other runs; ``rewrite``: even if
    they do already.
    """
    if recipe is None:
        recipe = round_recipe(session, plan)
        session.reporter.say(
            f"{name}: {sum(plan.counts)} examples in {recipe.rows} rows, {recipe.filled:.1%} filled"
        )
    return _train(session, recipe, start(session), folder, name, rewrite)


def start(session: Session) -> Start:
    """M_0 on the mesh, made once per work directory."""
    config, mesh, model = session.config, session.mesh, session.model
    if config.model.init != "random":
        return init_start(config, model, mesh)
    folder = session.workdir.path / "base"
    if config.base.steps == 0:
        whole = random_params(session.whole_model, mesh, config.seed)
        if model.cfg.lora is not None and not processes.agree((folder / "model.json").exists()):
            # Whoever reads the adapters again needs what they belong to.
            save_model(folder, session.whole_model, whole, session.data.folder / "tokenizer")
            processes.barrier("base")
        return adapted(config, model, mesh, whole)
    folder = session.workdir.path / "base"
    whole = _known_base(session, folder)
    if whole is None:
        whole = _train_base(session._replace(model=session.whole_model), folder)
    # Not behind the training: a kill between its record and this would leave them for good.
    if processes.is_writer():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return adapted(config, model, mesh, whole)


def _known_base(session: Session, folder: pathlib.Path) -> Any:
    """The base's parameters; None if they are to be made (again)."""
    record = known(folder / "train.json", "the base is trained again")
    if record is None:
        return None
    shapes = abstract_params(session.whole_model, session.mesh)
    try:
        return load_params(folder, shapes, record["params_sha256"])
    except sealed.DamagedError as error:
        sealed.tell(f"{error}; the base is trained again")
        return None


def trained_shapes(session: Session) -> Any:
    """``jax.ShapeDtypeStruct``s of the parameters that a round trains."""
    whole = abstract_params(session.model, session.mesh)
    return whole if session.model.cfg.lora is None else lora.split(whole)[1]


def _train_base(session: Session, folder: pathlib.Path) -> Any:
    config = session.config
    with session.reporter.phase("base: data"):
        stores = _base_stores(session)
    sizes = tuple(len(store) for store in stores)
    options = ConfigDict({**config.training.to_dict(), **config.base.to_dict(), "micro_batches": 1})
    plan = MixturePlan(sizes, sizes, config.seed)
    recipe = _recipe(session, options, plan, stores, config.seed)
    if not is_built_in(config.data):
        recipe = recipe._replace(batches=recipe.batches.map(_all_targets))
    with session.reporter.phase("base: parameters"):
        params = random_params(session.model, session.mesh, config.seed)
    return _train(session, recipe, Start(params, {}), folder, "base", rewrite=True).params


def _base_stores(session: Session) -> list[TokenStore]:
    """Generic primitives for the built-in capabilities; for real data its own training text."""
    config, data = session.config, session.data
    if not is_built_in(config.data):
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
        loss_fn=decoder_loss(session.model, config.loss.block),
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
        filled=table.filled,
        batch_size=options.batch_size,
        steps=steps,
        micro_batches=options.micro_batches,
    )


def _train(
    session: Session,
    recipe: Recipe,
    begin: Start,
    folder: pathlib.Path,
    name: str,
    rewrite: bool = False,
) -> Trained:
    config, steps = session.config, recipe.steps
    length = config.data.row_length
    positions = recipe.batch_size * length
    with session.reporter.phase(name) as advance:
        result = training.train(
            mesh=session.mesh,
            loss_fn=recipe.loss_fn,
            optimizer=recipe.optimizer,
            learning_rate=recipe.learning_rate,
            params=begin.params,
            frozen=begin.frozen,
            batches=recipe.batches,
            batch_size=recipe.batch_size,
            steps=steps,
            micro_batches=recipe.micro_batches,
            folder=folder,
            log_every=config.training.log_every,
            checkpoint_every=config.training.checkpoint_every,
            prefetch=config.data.prefetch,
            flops=cost.model_flops(session.model.cfg, positions, length),
            trace=training.traced_steps(config.logging.trace),
            tensorboard=config.logging.tensorboard,
            progress=lambda step, m: advance(step, steps, _note(m)),
            name=name.removesuffix(": train"),
            section="base" if name == "base" else "training",
        )
    file, digest = folder / "train.json", trees.digest(sharding.fetch(result.state.params))
    before = known(file)
    if before is not None and before["params_sha256"] != digest:
        sealed.tell(f"{folder}: trained again, and not to the same bits as before")
    elif before is not None and not rewrite:
        return Trained(result.state, before, begin.frozen)
    record = before or {
        "steps": steps,
        "rows": recipe.rows,
        "filled": recipe.filled,
        "tokens": result.tokens,
        "supervised_tokens": result.supervised_tokens,
        "flops": cost.train_flops(session.model.cfg, steps * positions, length),
        "seconds": result.seconds,
    }
    record["params_sha256"] = digest
    base = _frozen_folder(session, folder) if begin.frozen else ""
    tokenizer = session.data.folder / "tokenizer"
    save_model(folder, session.model, result.state.params, tokenizer, base)
    processes.barrier(f"{name} record")
    if before is None:
        write_json(folder / "speed.json", result.speed)
        session.reporter.say(f"{name}: {speed_line(result.speed)}")
    write_json(file, record)
    processes.barrier(f"{name} recorded")
    return Trained(result.state, record, begin.frozen)


def _note(metrics: Mapping[str, float]) -> str:
    """What stands beside the bar of a training."""
    return f"loss {metrics['loss']:.3f}, {metrics['tokens_per_second']:,.0f} tokens/s"


def _frozen_folder(session: Session, folder: pathlib.Path) -> str:
    """Where M_0's parameters can be read again; seen from ``folder`` if it moves with them."""
    init, run = session.config.model.init, os.path.abspath(session.workdir.path)
    base = os.path.join(run, "base") if init == "random" else frozen_folder(init)
    inside = pathlib.Path(base).is_relative_to(run)
    return os.path.relpath(base, folder.absolute()) if inside else base


def _all_targets(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every real token is a target: plain language modelling."""
    return {**batch, "weights": (batch["segments"] > 0).astype(np.float32)}
