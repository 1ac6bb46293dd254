"""One supervised fine-tuning from M_0 on a given mixture, and M_0 itself."""

import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ideal_jax import sharding, training, trees
from ideal_jax.data import TokenStore, generic_store, packed_rows, training_batches
from ideal_jax.mixture import MixturePlan
from ideal_jax.runs import cost, processes
from ideal_jax.runs.session import Session, abstract_params, model_shape, random_params
from ideal_jax.runs.workdir import read_json, write_json
from ideal_jax.training.checkpoints import load_params, save_params


class Trained(NamedTuple):
    """The end of one training."""

    params: Any
    record: dict[str, Any]  # steps, tokens, flops, seconds, params_sha256


def train_round(session: Session, plan: MixturePlan, folder: pathlib.Path, name: str) -> Trained:
    """Trains M_0 on ``plan`` in ``folder``; continues or just restores what is there."""
    config = session.config
    stores = [session.data.train[domain] for domain in session.names]
    start = base_params(session)
    return _train(session, config.training, plan, stores, start, folder, name)


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
    if processes.agree((folder / "base.json").exists()):
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
    start = random_params(session.model, session.mesh, config.seed)
    everything = bool(config.data.root)
    trained = _train(session, options, plan, stores, start, folder, "base", everything)
    save_params(folder, trained.params, model_shape(session.model))
    processes.barrier("base params")
    write_json(folder / "base.json", trained.record)
    processes.barrier("base record")
    return trained.params


def _base_stores(session: Session) -> list[TokenStore]:
    """Generic primitives for the built-in capabilities; for real data its own training text."""
    config, data = session.config, session.data
    if config.data.root:
        return [data.train[name] for name in session.names]
    if processes.is_writer():
        generic_store(data, config.base.examples, config.seed, config.data.row_length)
    processes.barrier("base data")
    return [generic_store(data, config.base.examples, config.seed, config.data.row_length)]


def _train(
    session: Session,
    options: Any,
    plan: MixturePlan,
    stores: list[TokenStore],
    params: Any,
    folder: pathlib.Path,
    name: str,
    supervise_everything: bool = False,
) -> Trained:
    config, mesh, data = session.config, session.mesh, session.config.data
    table = packed_rows(plan, stores, data.row_length, data.max_segments, data.window)
    steps = options.steps or math.ceil(options.epochs * len(table) / options.batch_size)
    batches = training_batches(
        table,
        stores,
        batch_size=options.batch_size,
        row_length=data.row_length,
        max_segments=data.max_segments,
        seed=config.seed,
        reduction=config.loss.reduction,
        rows=sharding.local_rows(mesh, options.batch_size),
    )
    if supervise_everything:
        batches = batches.map(_all_targets)
    with session.reporter.phase(name) as advance:
        result = training.train(
            mesh=mesh,
            loss_fn=training.decoder_loss(session.model, config.loss.block),
            optimizer=training.adamw(options, steps),
            learning_rate=training.schedule(options, steps),
            params=params,
            batches=batches,
            batch_size=options.batch_size,
            steps=steps,
            micro_batches=options.micro_batches,
            folder=folder,
            log_every=config.training.log_every,
            checkpoint_every=config.training.checkpoint_every,
            prefetch=data.prefetch,
            progress=lambda step, m: advance(step, steps, f"loss {m['loss']:.3f}"),
        )
    file = folder / "train.json"
    if processes.agree(file.exists()):
        return Trained(result.params, read_json(file))
    positions = steps * options.batch_size * data.row_length
    record = {
        "steps": steps,
        "rows": len(table),
        "tokens": result.tokens,
        "supervised_tokens": result.supervised_tokens,
        "flops": cost.train_flops(session.model.cfg, positions, data.row_length),
        "seconds": result.seconds,
        "params_sha256": trees.digest(sharding.fetch(result.params)),
    }
    processes.barrier(f"{name} record")
    write_json(file, record)
    return Trained(result.params, record)


def _all_targets(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every real token is a target: plain language modelling."""
    return {**batch, "weights": (batch["segments"] > 0).astype(np.float32)}
