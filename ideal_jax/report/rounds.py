"""What every section asks about the rounds: names, roles, labels, how far the run is."""

import math
from typing import Any

from ideal_jax.report.load import Round, Run


def best(run: Run) -> int | None:
    """The chosen round (so far), None while nothing is chosen or its files are missing."""
    return _known(run, "best_round")


def lowest(run: Run) -> int | None:
    """The round of the lowest reference loss (so far), None as for ``best``."""
    return _known(run, "lowest_round")


def _known(run: Run, key: str) -> int | None:
    number = run.results[key] if run.results else None
    known = [round_.number for round_ in run.rounds]
    return int(number) if number is not None and number in known else None


def role(run: Run, number: int) -> str:
    """How charts draw the round: "chosen", "given" (the first mixture) or "other"."""
    if number == best(run):
        return "chosen"
    return "given" if number == run.rounds[0].number else "other"


def label(run: Run, number: int) -> str:
    """The round's number and what is special about it."""
    notes = ["given"] * (number == run.rounds[0].number) + ["chosen"] * (number == best(run))
    return f"{number} ({', '.join(notes)})" if notes else str(number)


def is_open(run: Run, number: int, of_interest: int | None) -> bool:
    """Whether the round's details start open: all of a short run, else the ones that matter."""
    return len(run.rounds) <= 3 or number in (of_interest, run.rounds[-1].number)


def domains(run: Run) -> list[str]:
    """Domain names of all rounds, in the order of the first round that has them."""
    return list(
        dict.fromkeys(domain["name"] for r in run.rounds for domain in r.mixture["domains"])
    )


def counts(round_: Round) -> dict[str, float]:
    """Examples of each domain in the round's mixture."""
    return {domain["name"]: domain["count"] for domain in round_.mixture["domains"]}


def shares(round_: Round) -> dict[str, float]:
    """Each domain's share of the round's examples."""
    examples = counts(round_)
    total = sum(examples.values())
    return {name: count / total if total else math.nan for name, count in examples.items()}


def selection_loss(run: Run, round_: Round) -> float | None:
    """The reference loss that chooses the round, in nats per token."""
    if round_.evaluation and round_.evaluation["selection_loss"] is not None:
        return round_.evaluation["selection_loss"]
    for entry in (run.results or {}).get("rounds") or []:
        if entry["round"] == round_.number:
            return entry["selection_loss"]
    return None


def finished(run: Run) -> bool:
    """Whether the run says that it is done."""
    return run.results is not None and run.results["status"] == "finished"


def progress(run: Run) -> list[dict[str, str]]:
    """For each round, how far each of its phases is, in words."""
    planned = setting(run, "training", "steps")
    last = setting(run, "mixture", "rounds")
    rows = []
    for k, round_ in enumerate(run.rounds):
        later = k + 1 < len(run.rounds)
        trained = later or round_.evaluation is not None or round_.influence is not None
        rows.append(
            {
                "label": label(run, round_.number),
                "training": _training(round_, trained, planned),
                "evaluation": "done" if round_.evaluation else "not yet",
                "influence": _influence(round_, later, last),
            }
        )
    return rows


def setting(run: Run, *keys: str) -> float | None:
    """A number of the configuration, None if it is missing or no number."""
    value: Any = run.config["config"]
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _training(round_: Round, trained: bool, planned: float | None) -> str:
    if trained:
        return "done"
    if not round_.steps:
        return "no step logged yet"
    step = round_.steps[-1]["step"]
    return f"step {step:,.0f} of {planned:,.0f}" if planned else f"step {step:,.0f}"


def _influence(round_: Round, later: bool, last: float | None) -> str:
    if round_.influence:
        return "done"
    if later:
        return "no file"
    return "not needed in the last round" if round_.number == last else "not yet"
