"""Influence at a checkpoint: what a little more of each domain would do to an existing model."""

import pathlib
from typing import Any

import jax.numpy as jnp

from ideal_jax import processes
from ideal_jax.errors import UserError
from ideal_jax.influence import needs_of
from ideal_jax.runs.ideal_run import plan_of
from ideal_jax.runs.influence_options import check_influence
from ideal_jax.runs.influence_record import check_solved
from ideal_jax.runs.influence_round import influence_round
from ideal_jax.runs.session import open_session
from ideal_jax.runs.summary import print_influence
from ideal_jax.runs.train_run import Trained, start
from ideal_jax.runs.workdir import known, read_json, write_json
from ideal_jax.training import TrainState


def influence_run(config: Any, workdir: str | pathlib.Path, *, command: str = "") -> dict[str, Any]:
    """Measures the influence of the given mixture's domains at ``model.init``.

    Args:
      config: ``model.init`` names the checkpoint: ``base/`` or ``rounds/NN`` of a run, or a folder
        of Hugging Face.
      workdir: gets ``influence/influence.json``; a second call only prints it.
      command: recorded in ``config.json``.

    Returns:
      The content of ``influence.json``.

    Raises:
      UserError: no checkpoint, or an estimator that needs more than one.
    """
    estimator = config.influence.estimator
    check_influence(config)
    if config.model.init == "random":
        raise UserError(
            "--config.model.init=FOLDER is missing: influence is measured at a trained model, such"
            " as rounds/00 of a run or a folder of Hugging Face"
        )
    if needs_of(estimator).training:
        raise UserError(
            f"influence.estimator={estimator!r} needs the training itself, which a checkpoint does"
            " not hold; use it in a run, or choose another"
        )
    session = open_session(config, workdir, command)
    file = session.workdir.path / "influence" / "influence.json"
    if known(file) is None:
        begin = start(session)
        state = TrainState(jnp.zeros((), jnp.int32), begin.params, ())
        checkpoint = Trained(state, {}, begin.frozen)
        plan = plan_of(session, session.given)
        write_json(file, influence_round(session, session.given, plan, checkpoint))
        processes.barrier("influence")
    record: dict[str, Any] = read_json(file)
    check_solved(record, file)
    if processes.is_writer():
        print_influence(record, file)
    return record
