"""Influence at a model that is there: what a little more of each domain would do to it."""

import pathlib
from typing import Any

import jax.numpy as jnp

from ideal_jax import config as config_lib
from ideal_jax import processes
from ideal_jax.errors import UserError
from ideal_jax.influence import needs_of
from ideal_jax.report import write_report
from ideal_jax.runs import cluster
from ideal_jax.runs.base_model import trained_in
from ideal_jax.runs.ideal_run import plan_of
from ideal_jax.runs.influence_options import check_influence
from ideal_jax.runs.influence_record import check_solved
from ideal_jax.runs.influence_round import influence_round
from ideal_jax.runs.session import Session, open_session
from ideal_jax.runs.summary import print_influence
from ideal_jax.runs.train_run import Trained, start
from ideal_jax.runs.verify_run import round_state
from ideal_jax.runs.workdir import WorkDir, known, read_json, refuse_damaged, write_json
from ideal_jax.training import TrainState


def influence_run(config: Any, workdir: str | pathlib.Path, *, command: str = "") -> dict[str, Any]:
    """Measures what more of each domain would do to a model; a second call only shows it.

    In the work directory of a run the model and the mixture are those of one of its rounds
    (``influence.round``; -1: the best so far), and ``influence/NN/influence.json`` is written.
    Anywhere else the model is ``model.init``, the mixture the given one, and the file
    ``influence/influence.json``. Nothing is trained, and nothing of a run is changed but its
    report.

    Args:
      config: of the run; or one whose ``model.init`` names the model: ``base/`` or ``rounds/NN`` of
        a run, or a folder of Hugging Face.
      workdir: of the run, or of this measurement.
      command: recorded in ``config.json`` where there is none yet.

    Returns:
      The content of ``influence.json``.

    Raises:
      UserError: no model, or an estimator that needs more than one.
    """
    cluster.initialise()
    config_lib.check(config)
    check_influence(config)
    folder = pathlib.Path(workdir)
    number = None
    if _is_run(folder):
        refuse_damaged(folder)
        number = _round(config, folder)
    place = folder / "influence" / ("" if number is None else f"{number:02d}")
    file = place / "influence.json"
    record = known(file)
    if record is None:
        _check(config, folder, number)
        recorded = (folder / "config.json").exists()  # its own command stays on record
        session = open_session(config, folder, "" if recorded else command)
        write_json(file, _measured(session, number))
        processes.barrier("influence")
        record = read_json(file)
    else:
        WorkDir(folder, config)  # refuses another config, and says what differs
    check_solved(record, file)
    if processes.is_writer():
        report = write_report(folder)
        print_influence(record, file)
        print(f"report: {report}")
    return record


def _is_run(folder: pathlib.Path) -> bool:
    """Whether rounds were trained there, or will be: not a folder that this verb has made."""
    return (folder / "rounds" / "00" / "mixture.json").exists()


def _round(config: Any, folder: pathlib.Path) -> int:
    """The round that is asked for, if it is trained."""
    number, results = config.influence.round, folder / "results.json"
    trained = sorted((folder / "rounds").glob("[0-9]*/train.json"))
    if number < 0 and results.exists():
        number = read_json(results)["best_round"]
    elif number < 0 and trained:
        number = int(trained[-1].parent.name)
    if not (folder / "rounds" / f"{number:02d}" / "train.json").exists():
        asked = "no round" if number < 0 else f"influence.round={number}: round {number}"
        told = ", ".join(str(int(path.parent.name)) for path in trained) or "none"
        raise UserError(
            f"{asked} of {folder} is trained to its end (trained: {told}); continue the run, or"
            " choose another"
        )
    return int(number)


def _check(config: Any, folder: pathlib.Path, number: int | None) -> None:
    """Whether there is a model, and all that the estimator asks for."""
    estimator = config.influence.estimator
    if number is None and config.model.init == "random":
        raise UserError(
            "--config.model.init=FOLDER is missing: influence is measured at a trained model, such"
            " as rounds/00 of a run or a folder of Hugging Face; in the work directory of a run"
            " --workdir alone is enough"
        )
    if number is not None and _of_the_run(folder, number).exists():
        return
    needs = needs_of(estimator)
    if needs.second_moment or (needs.run and number is None):
        raise UserError(
            f"influence.estimator={estimator!r} needs the training itself, which a checkpoint does"
            " not hold; use it in a run, or choose another"
        )


def _of_the_run(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / "rounds" / f"{number:02d}" / "influence.json"


def _measured(session: Session, number: int | None) -> dict[str, Any]:
    """``influence.json`` with what it was measured at: the model, and each domain's count."""
    if number is None:
        state, begin = session.given, start(session)
        where = {"model": session.config.model.init}
    else:
        state = round_state(session, number, "influence.round")
        where = {"model": f"rounds/{number:02d}", "round": number}
    where["given"] = state.counts.tolist()
    if number is not None:
        measured = known(_of_the_run(session.workdir.path, number), "it is measured again")
        if measured is not None:  # the run has measured just this
            return {**measured, **where}
        folder = session.workdir.round(number)
        begin = trained_in(folder, session.config, session.model, session.mesh)
    parameters = TrainState(jnp.zeros((), jnp.int32), begin.params, ())
    trained = Trained(parameters, {}, begin.frozen)
    return {**influence_round(session, state, plan_of(session, state), trained), **where}
