"""The score and loss sections: what each round's model can do, with error bars."""

import math
from typing import Any

from markupsafe import Markup

from ideal_jax.report import figures, formats, rounds
from ideal_jax.report.load import Round, Run


def are_fractions(run: Run) -> bool:
    """Whether all scores lie in [0, 1] and are shown as percent."""
    values = [task["value"] for round_ in run.rounds for task in _tasks(round_).values()]
    return all(0 <= x <= 1 for x in values if math.isfinite(x))


def overall(round_: Round, as_percent: bool) -> str:
    """The round's overall score with its error."""
    data = round_.evaluation
    if not data:
        return formats.MISSING
    return formats.score(data["overall"], data["overall_stderr"], as_percent)


def task_scores(run: Run) -> dict[str, Any]:
    """Scores of every task and round, and their chart."""
    evaluated = [round_ for round_ in run.rounds if round_.evaluation]
    percent = are_fractions(run)
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for round_ in evaluated:
        known = _tasks(round_) | known
    rows = []
    for key, task in known.items():
        cells = []
        for round_ in evaluated:
            one = _tasks(round_).get(key)
            score = formats.score(one["value"], one["stderr"], percent) if one else formats.MISSING
            cells.append(score)
        rows.append(
            {
                "name": task["name"],
                "domain": task["domain"] or "",
                "detail": _detail(task),
                "cells": cells,
            }
        )
    scale = 100.0 if percent else 1.0

    def column(round_: Round, field: str, last: str) -> list[float]:
        values = [_tasks(round_).get(key, {}).get(field) for key in known]
        return [_scaled(x, scale) for x in [*values, (round_.evaluation or {})[last]]]

    figure = _dots(
        run,
        evaluated,
        "scores",
        [*(task["domain"] or task["name"] for task in known.values()), "overall"],
        {round_.number: column(round_, "value", "overall") for round_ in evaluated},
        {round_.number: column(round_, "stderr", "overall_stderr") for round_ in evaluated},
        ("Score of each capability and round", "score, %" if percent else "score"),
    )
    return {
        "rounds": [rounds.label(run, round_.number) for round_ in evaluated],
        "rows": rows,
        "overall": [overall(round_, percent) for round_ in evaluated],
        "figure": figure,
    }


def losses(run: Run) -> list[dict[str, Any]]:
    """Reference and test loss of every domain and round; one view per set that was measured."""
    kinds = (
        ("reference_loss", "Reference loss", "Held out from training; decisions read these only."),
        ("test_loss", "Test loss", "Held out from training and from every decision."),
    )
    views = [_losses(run, *kind) for kind in kinds]
    return [view for view in views if view["rows"]]


def _detail(task: dict[str, Any]) -> str:
    """The task behind a capability: its name where that differs, its metric, its size."""
    parts = [task["name"]] if task["domain"] and task["domain"] != task["name"] else []
    parts += [task["metric"].replace("_", " ")] if task["metric"] else []
    parts += [f"n\u00a0=\u00a0{formats.count(task['n'])}"] if formats.finite(task["n"]) else []
    return ", ".join(parts)


def _losses(run: Run, key: str, title: str, meaning: str) -> dict[str, Any]:
    evaluated = [round_ for round_ in run.rounds if round_.evaluation and round_.evaluation[key]]
    data = {round_.number: (round_.evaluation or {})[key] for round_ in evaluated}
    names = list(dict.fromkeys(name for losses in data.values() for name in losses))
    rows = []
    for name in names:
        cells = [_loss_cell(data[round_.number].get(name)) for round_ in evaluated]
        counted = [losses[name]["n"] for losses in data.values() if name in losses]
        rows.append({"name": name, "n": formats.count(counted[0]), "cells": cells})
    last = None
    if key == "reference_loss":
        last = ("For choosing", [rounds.selection_loss(run, round_) for round_ in evaluated])
    elif any((round_.evaluation or {})["test_loss_mean"] is not None for round_ in evaluated):
        last = ("Mean", [(round_.evaluation or {})["test_loss_mean"] for round_ in evaluated])

    def column(number: int, field: str) -> list[float]:
        return [_scaled(data[number].get(name, {}).get(field)) for name in names]

    figure = _dots(
        run,
        evaluated,
        key.replace("_", "-"),
        names,
        {number: column(number, "nats_per_token") for number in data},
        {number: column(number, "stderr") for number in data},
        (f"{title} of each domain and round", "nats per token, lower is better"),
    )
    return {
        "title": title,
        "meaning": meaning,
        "rounds": [rounds.label(run, round_.number) for round_ in evaluated],
        "rows": rows,
        "last": {"name": last[0], "cells": [formats.fixed(x, 4) for x in last[1]]}
        if last
        else None,
        "figure": figure,
    }


def _loss_cell(loss: dict[str, Any] | None) -> dict[str, str]:
    if loss is None:
        return {"nats": formats.MISSING, "bits": formats.MISSING}
    return {
        "nats": formats.plus_minus(loss["nats_per_token"], loss["stderr"]),
        "bits": formats.fixed(loss["bits_per_byte"], 3),
    }


def _dots(
    run: Run,
    evaluated: list[Round],
    name: str,
    names: list[str],
    values: dict[int, list[float]],
    stderrs: dict[int, list[float]],
    texts: tuple[str, str],
) -> Markup | None:
    """The chart of one quantity: whiskers are 95 % intervals. None if there is nothing to draw."""
    if not evaluated:
        return None
    series = [
        figures.Series(
            rounds.label(run, round_.number),
            rounds.role(run, round_.number),
            values[round_.number],
            [1.96 * x for x in stderrs[round_.number]],
        )
        for round_ in evaluated
    ]
    label = f"{texts[0]}; the numbers are in the table below."
    return figures.dots(name, label, names, series, texts[1])


def _scaled(x: float | None, scale: float = 1.0) -> float:
    return math.nan if x is None else scale * x


def _tasks(round_: Round) -> dict[tuple[str, str], dict[str, Any]]:
    tasks = round_.evaluation["tasks"] if round_.evaluation else []
    return {(task["name"], task["domain"] or ""): task for task in tasks}
