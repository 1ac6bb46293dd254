"""The main job: train, measure influence, move the mixture, retrain, until it is balanced."""

import pathlib
from typing import Any

from ideal_jax import config as config_lib
from ideal_jax import processes
from ideal_jax.mixture import MixturePlan, MixtureState, is_settled, update
from ideal_jax.report import write_report
from ideal_jax.runs import cluster
from ideal_jax.runs.evaluate_run import evaluate_round
from ideal_jax.runs.export_run import export_best, try_export
from ideal_jax.runs.influence_options import check_influence
from ideal_jax.runs.influence_record import check_solved, influence_of_json, solve_warning
from ideal_jax.runs.influence_round import influence_round
from ideal_jax.runs.results import write_results
from ideal_jax.runs.session import Session, capability_weights, open_session
from ideal_jax.runs.summary import print_summary
from ideal_jax.runs.train_run import start, train_round
from ideal_jax.runs.workdir import (
    any_damaged,
    finished,
    known,
    refuse_damaged_checks,
    write_json,
)


def ideal_run(config: Any, workdir: str | pathlib.Path, *, command: str = "") -> dict[str, Any]:
    """Runs IDEAL from the given mixture to the report.

    Every phase leaves a file; a phase whose file is there is not run again, so the same call
    continues an interrupted run to the bit-identical result. That of a damaged file is.

    Args:
      config: as of ``configs/base.py``.
      workdir: created if missing.
      command: recorded in ``config.json``.

    Returns:
      The content of ``results.json``.

    Raises:
      UserError: bad config, data or work directory.
    """
    config_lib.check(config)
    check_influence(config)
    cluster.initialise()
    folder = pathlib.Path(workdir)
    refuse_damaged_checks(folder)
    results, session = finished(folder, config), None
    if results is None:
        session = open_session(config, folder, command)
        try_export(session)
        results = _run_rounds(session)
        processes.barrier("results")
    if processes.is_writer():
        report, written = folder / "report.html", (folder / "results.json").stat().st_mtime_ns
        if not report.exists() or report.stat().st_mtime_ns < written:
            write_report(folder)
        weights = capability_weights(config, len(results["rounds"][0]["mixture"]))
        print_summary(results, weights, report)
    export_best(folder, results, lambda: session or open_session(config, folder, command))
    return results


def _run_rounds(session: Session) -> dict[str, Any]:
    state, final = session.given, session.config.mixture.rounds
    rounds: list[dict[str, Any]] = []
    known(session.workdir.path / "results.json")
    if any_damaged([session.workdir.path / "base" / "train.json"]):
        start(session)
    for index in range(final + 1):
        record, state = run_round(session, state, last=index == final)
        rounds.append(record)
        if record["stopped"]:
            break
        if index < final:
            write_results(session, rounds, status="running")
    return write_results(session, rounds, status="finished")


def run_round(
    session: Session, state: MixtureState, *, last: bool
) -> tuple[dict[str, Any], MixtureState]:
    """One round: train, evaluate, and unless it is the last, influence and the next mixture."""
    config, folder = session.config, session.workdir.round(state.round)
    plan = plan_of(session, state)
    known(folder / "speed.json", "it is left out, as speed is measured once")
    if known(folder / "mixture.json") is None:
        write_json(folder / "mixture.json", _mixture_json(session, state, plan))
    wants_influence = not last or config.influence.final
    evaluation_file, influence_file = folder / "evaluation.json", folder / "influence.json"
    evaluation = known(evaluation_file)
    influence = known(influence_file) if wants_influence else None
    done = evaluation is not None and (influence is not None or not wants_influence)
    record = known(folder / "train.json") if done else None
    processes.barrier(f"round {state.round}")
    if record is None:
        trained = train_round(session, plan, folder, f"round {state.round}: train")
        record = trained.record
    if evaluation is None:
        evaluation = evaluate_round(
            session, trained.whole(session), f"round {state.round}: evaluate"
        )
        write_json(evaluation_file, evaluation)
    following, stopped = state, False
    if wants_influence:
        if influence is None:
            title = f"round {state.round}: influence"
            influence = influence_round(session, state, plan, trained, title=title)
            write_json(influence_file, influence)
        else:
            check_solved(influence, influence_file)
        if told := solve_warning(influence):
            session.reporter.say(f"round {state.round}: {told}")
        matrix = influence_of_json(influence)
        stopped = not last and config.mixture.stop and is_settled(matrix)
        if not stopped:
            following = next_state(session, state, matrix)
    outcome = {
        "round": state.round,
        "state": state,
        "train": record,
        "evaluation": evaluation,
        "influence": influence,
        "stopped": stopped,
    }
    return outcome, following


def next_state(session: Session, state: MixtureState, influence: Any) -> MixtureState:
    """IDEAL's rule with the config's bounds."""
    rule = session.config.mixture
    return update(
        state,
        influence,
        step=rule.step,
        keep_total=rule.keep_total,
        min_share=rule.min_share,
        max_repetition=rule.max_repetition,
    )


def plan_of(session: Session, state: MixtureState) -> MixturePlan:
    """The examples of a mixture; one seed for all rounds, so the plans are nested."""
    sizes = tuple(int(size) for size in state.available)
    return MixturePlan(sizes, tuple(int(c) for c in state.counts), session.config.seed)


def _mixture_json(session: Session, state: MixtureState, plan: MixturePlan) -> dict[str, Any]:
    domains = []
    for j, name in enumerate(state.names):
        lengths = session.data.train[name].lengths[plan.items(j)]
        domains.append(
            {
                "name": name,
                "available": int(state.available[j]),
                "beta": float(state.beta[j]),
                "count": int(state.counts[j]),
                "volume": float(state.unrounded[j]),
                "tokens": int(lengths.sum()),
            }
        )
    return {
        "round": state.round,
        "method": "given" if state.round == 0 else "ideal",
        "seed": session.config.seed,
        "domains": domains,
        "total_examples": int(state.counts.sum()),
        "total_tokens": sum(domain["tokens"] for domain in domains),
        "plan_sha256": plan.digest(),
    }
