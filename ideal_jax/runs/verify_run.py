"""Was the prediction right? Trains again with one domain moved, and compares with influence.

The truth is measured as influence defines it: the same base model, batches and steps, one domain's
tokens counting 1 ± b in the loss (``verify.method=weights``) or one domain's examples resampled to
(1 ± b) times as many at the same number of steps (``resample``, which brings the noise of another
sample with it). The slope (Q₊ − Q₋) / 2b of every reference objective stands against A; how well
its two sides, (Q₊ − Q) / b and (Q − Q₋) / b, agree tells what the truth is worth. Or, without any
retraining, A stands against the derivative of the run itself (``metagradient``).
"""

import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ideal_jax import config as config_lib
from ideal_jax import processes
from ideal_jax.data import example_batches
from ideal_jax.errors import UserError
from ideal_jax.evaluation import domain_losses
from ideal_jax.influence.agreement import agreement
from ideal_jax.influence.estimators import METAGRADIENT
from ideal_jax.mixture import MixturePlan, MixtureState
from ideal_jax.models import example_losses
from ideal_jax.report import write_report
from ideal_jax.runs.evaluate_run import reference_halves
from ideal_jax.runs.ideal_run import plan_of
from ideal_jax.runs.influence_options import check_influence
from ideal_jax.runs.influence_record import check_solved, solve_warning
from ideal_jax.runs.influence_round import influence_round
from ideal_jax.runs.session import Session, open_session
from ideal_jax.runs.train_run import Recipe, round_recipe, train_round
from ideal_jax.runs.workdir import (
    known,
    read_json,
    refuse_damaged,
    refuse_damaged_checks,
    write_json,
)

METHODS = ("weights", "resample", METAGRADIENT)


def verify_run(config: Any, workdir: str | pathlib.Path, *, command: str = "") -> dict[str, Any]:
    """Measures the truth, estimates, compares; continues where it was interrupted.

    Returns:
      The content of ``verify/round_NN/verification.json``.

    Raises:
      UserError: bad options, or the round has not been reached.
    """
    options = config.verify
    config_lib.check(config)
    check_influence(config)
    changes = _changes(options)
    estimators = config_lib.names(options.estimators) or (config.influence.estimator,)
    workdir = pathlib.Path(workdir)
    refuse_damaged(workdir)
    refuse_damaged_checks(workdir, but=f"{options.method}.json")
    # Where a run was before, its own command stays on record.
    command = "" if (workdir / "config.json").exists() else command
    session = open_session(config, workdir, command)
    moved = config_lib.names(options.domains) or session.names
    for name in moved:
        config_lib.choice("verify.domains", name, session.names)
    state = round_state(session, options.round, "verify.round")
    folder = session.workdir.path / "verify" / f"round_{options.round:02d}"
    orders = [
        _order(session, state, moved, estimators, changes, order, folder / f"order_{order}")
        for order in range(options.orders)
    ]
    record = {
        "round": options.round,
        "method": options.method,
        "references": list(session.names),
        "domains": list(moved),
        "orders": orders,
        "summary": _summary(orders, estimators),
    }
    write_json(folder / f"{options.method}.json", record)
    processes.barrier("verified")
    if processes.is_writer():
        report = write_report(session.workdir.path)
        _print(record, report)
    return record


def _changes(options: Any) -> tuple[float, ...]:
    """The relative changes b, by the text that names them."""
    texts = config_lib.names(options.changes)
    values = config_lib.numbers("verify.changes", options.changes, float, len(texts))
    if options.method == METAGRADIENT:
        return ()
    if not values or not all(0 < b < 1 for b in values):
        raise UserError(f"verify.changes={options.changes}: give numbers between 0 and 1")
    return values


def round_state(session: Session, number: int, key: str) -> MixtureState:
    """The mixture of a round: the given one, or what the run has recorded.

    Raises:
      UserError: the run has not come to that round, which ``key`` asks for.
    """
    if number == 0:
        return session.given
    file = session.workdir.round(number) / "mixture.json"
    if not file.exists():
        raise UserError(f"{key}={number}: {file} does not exist; run that round first")
    found = read_json(file)["domains"]
    counts = np.asarray([domain["count"] for domain in found], np.int64)
    beta, volume = (np.asarray([domain[key] for domain in found]) for key in ("beta", "volume"))
    return session.given._replace(counts=counts, beta=beta, volume=volume, round=number)


def _order(
    session: Session,
    state: MixtureState,
    moved: Sequence[str],
    estimators: Sequence[str],
    changes: Sequence[float],
    order: int,
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Truth and predictions for one order of the rows."""
    plan = plan_of(session, state)
    recipe = round_recipe(session, plan, order=order)
    name = f"verify, order {order}"
    trained = train_round(session, plan, folder / "unmoved", name, recipe)
    columns = [session.names.index(domain) for domain in moved]
    predictions = {}
    truth = {}
    wanted = dict.fromkeys((*estimators, *([] if changes else [METAGRADIENT])))
    for estimator in wanted:
        file = folder / f"influence_{estimator}.json"
        if known(file) is None:
            other = session._replace(config=session.config.copy_and_resolve_references())
            other.config.influence.estimator = estimator
            write_json(file, influence_round(other, state, plan, trained, order))
            processes.barrier(f"{name} {estimator}")
        found = read_json(file)
        check_solved(found, file)
        if told := solve_warning(found):
            session.reporter.say(f"{name}, {estimator}: {told}")
        part = {key: np.asarray(found[key])[:, columns].tolist() for key in ("matrix", "stderr")}
        if estimator in estimators:
            predictions[estimator] = part
        if not changes and estimator == METAGRADIENT:
            truth["0"] = part["matrix"]
    file = folder / "unmoved.json"
    if changes and known(file) is None:
        losses = reference_losses(session, trained.whole(session))
        write_json(file, {"loss": losses.tolist(), "digest": trained.record["params_sha256"]})
        processes.barrier(f"{name} unmoved")
    sides = {}
    for change in changes:
        ends = [
            [
                _moved(session, plan, recipe, order, column, sign * change, folder, domain)
                for domain, column in zip(moved, columns, strict=True)
            ]
            for sign in (1, -1)
        ]
        high, low = (np.stack(losses, axis=1) for losses in ends)
        middle = np.asarray(read_json(file)["loss"])[:, None]
        truth[f"{change:g}"] = ((high - low) / (2 * change)).tolist()
        up, down = (high - middle) / change, (middle - low) / change
        sides[f"{change:g}"] = _finite(agreement(up, np.zeros_like(up), down).pearson)
    return {"order": order, "truth": truth, "sides": sides, "predictions": predictions}


def _moved(
    session: Session,
    plan: MixturePlan,
    recipe: Recipe,
    order: int,
    column: int,
    change: float,
    folder: pathlib.Path,
    domain: str,
) -> np.ndarray:
    """float64[R]: Q_i after training with one domain moved by ``change``."""
    method = session.config.verify.method
    name = f"{domain} {change:+g}"
    place = folder / f"{method}_{domain}{change:+g}"
    file = place.with_name(place.name + ".json")
    if known(file) is None:
        n = len(session.names)
        if method == "weights":
            factors = 1.0 + change * (np.arange(n) == column)
            recipe = round_recipe(session, plan, weights=factors.tolist(), order=order)
        else:
            counts = list(plan.counts)
            counts[column] = max(1, round(counts[column] * (1 + change)))
            plan = MixturePlan(plan.sizes, tuple(counts), plan.seed)
            recipe = round_recipe(session, plan, order=order, steps=recipe.steps)
        trained = train_round(session, plan, place, f"verify, {name}", recipe)
        losses = reference_losses(session, trained.whole(session))
        write_json(file, {"loss": losses.tolist(), "digest": trained.record["params_sha256"]})
        processes.barrier(f"verify {order} {name}")
    if processes.is_writer():
        shutil.rmtree(place, ignore_errors=True)
    return np.asarray(read_json(file)["loss"])


def reference_losses(session: Session, params: Any) -> np.ndarray:
    """float64[R]: Q_i over the examples that ∇Q_i is taken over, as the influence sees them."""
    config = session.config
    losses_fn = jax.jit(example_losses(session.whole_model, config.loss.block))
    found = []
    for j, domain in enumerate(session.names):
        batches = example_batches(
            session.data.reference[domain],
            reference_halves(session, j)[0][: config.influence.reference_examples],
            j,
            batch_size=session.rows(config.eval.batch_size),
            lengths=session.widths,
            reduction=config.loss.reduction,
        )
        found.append(domain_losses(losses_fn, session.mesh, params, batches).mean())
    return np.asarray(found)


def _summary(orders: Sequence[Any], estimators: Sequence[str]) -> list[dict[str, Any]]:
    """Agreement of every estimator at every change: mean and deviation over the orders."""
    rows = []
    for estimator in estimators:
        for change in orders[0]["truth"]:
            found = [
                agreement(
                    o["predictions"][estimator]["matrix"],
                    o["predictions"][estimator]["stderr"],
                    o["truth"][change],
                )._asdict()
                for o in orders
            ]
            row: dict[str, Any] = {"estimator": estimator, "change": float(change)}
            for key in found[0]:
                values = np.asarray([f[key] for f in found], float)
                row[key] = _finite(values.mean())
                row[f"{key}_deviation"] = _finite(values.std(ddof=1)) if len(values) > 1 else None
            rows.append(row)
    return rows


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _print(record: dict[str, Any], report: pathlib.Path) -> None:
    table = Table(title=f"influence against {record['method']}, round {record['round']}")
    for column in ("estimator", "±", "Pearson", "Spearman", "signs", "clear signs", "slope"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for row in record["summary"]:
        cells = [
            _cell(row, key) for key in ("pearson", "spearman", "signs", "clear_signs", "slope")
        ]
        table.add_row(row["estimator"], f"{row['change']:g}", *cells)
    console = Console(highlight=False)
    console.print(table)
    for order in record["orders"]:
        for change, pearson in order["sides"].items():
            told = "–" if pearson is None else f"{pearson:.2f}"
            console.print(f"the truth's own sides, +{change} and -{change}: Pearson {told}")
    console.print(f"report: {report}", soft_wrap=True)


def _cell(row: dict[str, Any], key: str) -> str:
    value, deviation = row[key], row[f"{key}_deviation"]
    if value is None:
        return "–"
    return f"{value:.2f}" if deviation is None else f"{value:.2f} ± {deviation:.2f}"
