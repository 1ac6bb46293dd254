"""``results.json``: what every round came to, which one is chosen and why, and what it all cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ideal_jax.mixture import Choice, ExampleLosses, choose_round, paired_difference
from ideal_jax.runs.session import Session
from ideal_jax.runs.workdir import read_json, write_json


def write_results(session: Session, rounds: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """Writes ``results.json`` of the rounds so far.

    Args:
      session: of the run.
      rounds: what ``run_round`` gave for each.
      status: "running" or "finished".

    Returns:
      Its content.
    """
    weights, confidence = session.capability_weights, session.config.influence.confidence
    halves = [_halves(session, record["evaluation"]) for record in rounds]
    counts = np.stack([record["state"].counts for record in rounds])
    choice = choose_round(halves, counts, weights, confidence)
    phases = _phases(session, rounds)

    def flops(name: str) -> float:
        return sum(phase["flops"] for phase in phases if phase["name"] == name)

    results = {
        "status": status,
        "rounds": [
            _round(record) | {"against_given": _against(session.names, half, halves[0], weights)}
            for record, half in zip(rounds, halves, strict=True)
        ],
        "best_round": rounds[choice.chosen]["round"],
        "best_round_reason": reason(choice, halves, weights, confidence),
        "lowest_round": rounds[choice.lowest]["round"],
        "equal_rounds": [rounds[k]["round"] for k in choice.equal],
        "confidence": confidence,
        "stopped": rounds[-1]["stopped"],
        "cost": {
            "base_flops": flops("base"),
            "train_flops": flops("train"),
            "influence_flops": flops("influence"),
            "evaluation_flops": flops("evaluate"),
            "seconds": {
                name: sum(p["seconds"] for p in phases if p["name"] == name)
                for name in ("base", "train", "influence", "evaluate")
            },
        },
        "phases": [{key: p[key] for key in ("name", "round", "flops", "seconds")} for p in phases],
    }
    write_json(session.workdir.path / "results.json", results)
    return results


def reason(
    choice: Choice,
    losses: Sequence[Sequence[ExampleLosses]],
    weights: Sequence[float],
    confidence: float,
) -> str:
    """Why a round is chosen, in a sentence; rounds and losses as in ``choose_round``."""
    chosen, lowest = choice.chosen, choice.lowest
    if len(losses) == 1:
        return "it is the only one"
    others = [str(k) for k in choice.equal if k != chosen]
    level = f"{100 * confidence:g} %, paired"
    if not others:
        why = f"its reference loss is the lowest, beyond the error of every difference ({level})"
    elif chosen == lowest:
        are = "is" if len(others) == 1 else "are"
        why = (
            f"its reference loss is the lowest; {_named(others)} {are} equal within error ({level})"
        )
        why += "" if chosen == 0 else " but no nearer to the given mixture"
    else:
        apart = paired_difference(losses[chosen], losses[lowest], weights)
        told = f"{apart.overall:+.4f} ± {apart.stderr:.4f} nats per token; {level}"
        nearer = "it is the given mixture" if chosen == 0 else "it is nearer to the given mixture"
        why = f"its reference loss and the lowest, of round {lowest}, are equal within error "
        why += f"({told}), and {nearer}"
    return f"{why}; read on the half of each reference set that no influence has seen"


def _named(rounds: Sequence[str]) -> str:
    return f"round{'s' * (len(rounds) > 1)} {' and '.join(rounds)}"


def _halves(session: Session, evaluation: dict[str, Any]) -> list[ExampleLosses]:
    """The selection half of every capability's reference set."""
    halves = (evaluation["selection"][name] for name in session.names)
    return [ExampleLosses(np.asarray(h["loss"]), np.asarray(h["tokens"])) for h in halves]


def _against(
    names: Sequence[str],
    losses: Sequence[ExampleLosses],
    given: Sequence[ExampleLosses],
    weights: Sequence[float],
) -> dict[str, Any]:
    """How much higher the reference losses are than with the given mixture, with errors."""
    apart = paired_difference(losses, given, weights)
    return {
        "difference": apart.overall,
        "stderr": apart.stderr,
        "capabilities": {
            name: {"difference": float(d), "stderr": float(e)}
            for name, d, e in zip(names, apart.values, apart.stderrs, strict=True)
        },
    }


def _round(record: dict[str, Any]) -> dict[str, Any]:
    state, evaluation = record["state"], record["evaluation"]
    return {
        "round": record["round"],
        "mixture": dict(zip(state.names, state.counts.tolist(), strict=True)),
        "beta": dict(zip(state.names, state.beta.tolist(), strict=True)),
        "overall": evaluation["overall"],
        "overall_stderr": evaluation["overall_stderr"],
        "scores": {
            task["domain"]: {"value": task["value"], "stderr": task["stderr"]}
            for task in evaluation["tasks"]
        },
        "selection_loss": evaluation["selection_loss"],
        "reference_loss": _nats(evaluation["reference_loss"]),
        "test_loss": _nats(evaluation["test_loss"]),
        "params_sha256": record["train"]["params_sha256"],
    }


def _phases(session: Session, rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    phases = []
    base = session.workdir.path / "base" / "train.json"
    if base.exists():
        record = read_json(base)
        phases.append({"name": "base", "round": None, **_cost_of(record)})
    for record in rounds:
        for name, part in (
            ("train", record["train"]),
            ("evaluate", record["evaluation"]),
            ("influence", record["influence"]),
        ):
            if part is not None:
                phases.append({"name": name, "round": record["round"], **_cost_of(part)})
    return phases


def _cost_of(record: dict[str, Any]) -> dict[str, float]:
    seconds = record["seconds"]
    if isinstance(seconds, dict):
        seconds = sum(seconds.values())
    return {"flops": record["flops"], "seconds": seconds}


def _nats(losses: dict[str, Any]) -> dict[str, float]:
    return {domain: entry["nats_per_token"] for domain, entry in losses.items()}
