"""The remaining sections: mixtures, loss curves, cost, samples and set-up, as plain views."""

import json
import math
import statistics
from typing import Any

from ideal_jax.report import changes, figures, formats, rounds
from ideal_jax.report.load import Round, Run

_OPERATIONS = {
    "train": "train_flops",
    "influence": "influence_flops",
    "evaluate": "evaluation_flops",
}
_SAMPLE = 4000  # characters shown of one prompt or answer


def mixture(run: Run) -> dict[str, Any]:
    """The mixture of every round: one chart, one table per round."""
    names = rounds.domains(run)
    chosen = rounds.best(run)
    series, tables = [], []
    for before, round_ in zip([None, *run.rounds], run.rounds, strict=False):
        share = rounds.shares(round_)
        label = rounds.label(run, round_.number)
        values = [share.get(name, math.nan) for name in names]
        series.append(figures.Series(label, rounds.role(run, round_.number), values))
        rows = [
            {
                "name": domain["name"],
                "available": formats.count(domain["available"]),
                "count": formats.count(domain["count"]),
                "share": formats.percent(share[domain["name"]]),
                "tokens": formats.count(domain["tokens"]),
                "beta": formats.percent(domain["beta"], signed=True),
                "made": _made(before, domain),
                "repetition": _repetition(domain),
            }
            for domain in round_.mixture["domains"]
        ]
        domains = round_.mixture["domains"]
        totals = {
            key: formats.count(sum(domain[key] for domain in domains))
            for key in ("available", "count", "tokens")
        }
        opened = rounds.is_open(run, round_.number, chosen)
        tables.append({"label": label, "rows": rows, "total": totals, "open": opened})
    label = (
        "Share of each domain in the mixture of each round; the numbers are in the tables below."
    )
    return {"figure": figures.bars("mixture", label, names, series), "tables": tables}


def curves(run: Run) -> dict[str, Any]:
    """Training loss over steps, one chart per round, and what the log says in numbers."""
    logged = [round_ for round_ in run.rounds if round_.steps]
    charts = figures.curves(
        [
            figures.Curve(
                round_.number,
                rounds.role(run, round_.number),
                [step["step"] for step in round_.steps],
                [step["loss"] for step in round_.steps],
            )
            for round_ in logged
        ]
    )
    labels = [rounds.label(run, round_.number) for round_ in logged]
    return {
        "charts": list(zip(labels, charts, strict=True)),
        "rows": [_log(round_) | {"label": rounds.label(run, round_.number)} for round_ in logged],
        "unreadable": sum(round_.unreadable for round_ in run.rounds),
    }


def cost(run: Run) -> dict[str, Any]:
    """Time and floating-point operations of every phase, and their totals."""
    results = run.results or {}
    phases = results.get("phases") or []
    total = results.get("cost") or {}
    longest = max((p["seconds"] for p in phases if formats.finite(p["seconds"])), default=0)
    rows = []
    for phase in phases:
        seconds = phase["seconds"]
        part = seconds / longest if formats.finite(seconds) and longest else 0.0
        number = phase["round"]
        rows.append(
            {
                "name": phase["name"] if number is None else f"Round {number}, {phase['name']}",
                "seconds": formats.duration(seconds),
                "flops": formats.flops(phase["flops"]),
                "width": f"{100 * part:.1f}%",
            }
        )
    operations = {name: total.get(key) for name, key in _OPERATIONS.items()}
    seconds = total.get("seconds") or {}
    known = [name for name in operations if operations[name] is not None]
    totals = [
        {
            "name": name,
            "seconds": formats.duration(seconds.get(name)),
            "flops": formats.flops(operations.get(name)),
        }
        for name in dict.fromkeys([*seconds, *known])
    ]
    train, measured = operations["train"], operations["influence"]
    ratio = ""
    if train and measured and formats.finite(train) and formats.finite(measured):
        ratio = formats.percent(measured / train)
    return {"rows": rows, "totals": totals, "ratio": ratio}


def samples(run: Run) -> list[dict[str, Any]]:
    """Generations of every evaluated round, the chosen (or last) one first."""
    withal = [round_ for round_ in run.rounds if round_.evaluation and round_.evaluation["samples"]]
    if not withal:
        return []
    numbers = [round_.number for round_ in withal]
    chosen = rounds.best(run)
    first = chosen if chosen in numbers else numbers[-1]
    views = []
    for round_ in sorted(withal, key=lambda r: (r.number != first, r.number)):
        items = [
            {
                "domain": sample["domain"] or "",
                "verdict": {True: "correct", False: "wrong", None: "not judged"}[sample["correct"]],
                "texts": [
                    (name, _shortened(sample[key]))
                    for name, key in (
                        ("Prompt", "prompt"),
                        ("Model", "generated"),
                        ("Reference", "reference"),
                    )
                    if sample[key] is not None
                ],
            }
            for sample in (round_.evaluation or {})["samples"]
        ]
        label = rounds.label(run, round_.number)
        views.append({"label": label, "samples": items, "open": round_.number == first})
    return views


def setup(run: Run) -> dict[str, Any]:
    """Everything needed to do it again."""
    config = run.config
    digests = [
        (rounds.label(run, int(entry["round"])), entry["params_sha256"])
        for entry in (run.results or {}).get("rounds") or []
        if entry["params_sha256"] and run.rounds
    ]
    plans = [
        (rounds.label(run, round_.number), round_.mixture["plan_sha256"])
        for round_ in run.rounds
        if round_.mixture["plan_sha256"]
    ]
    return {
        "command": config["command"] or "",
        "config": json.dumps(config["config"], indent=2, ensure_ascii=False),
        "versions": _pairs(config["versions"]),
        "devices": _pairs(config["devices"]),
        "mesh": _pairs(config["mesh"]),
        "plans": plans,
        "digests": digests,
    }


def _made(before: Round | None, domain: dict[str, Any]) -> str:
    """The change since the round before, where it is another than β."""
    count = rounds.counts(before).get(domain["name"]) if before else None
    return changes.made(domain["beta"], count, domain["count"]) if count else ""


def _repetition(domain: dict[str, Any]) -> str:
    """How often each available example is used, on average."""
    if not domain["available"]:
        return formats.MISSING
    return formats.fixed(domain["count"] / domain["available"], 2) + "×"


def _log(round_: Round) -> dict[str, str]:
    steps = round_.steps
    tail = [step["loss"] for step in steps[-max(1, len(steps) // 10) :]]

    def logged(key: str) -> list[float]:
        return [step[key] for step in steps if formats.finite(step[key])]

    speeds = logged("tokens_per_second")
    return {
        "step": formats.count(steps[-1]["step"]),
        "first": formats.fixed(steps[0]["loss"]),
        "last": formats.fixed(statistics.fmean(tail)),
        "rate": formats.significant(max(logged("learning_rate"), default=None)),
        "norm": formats.significant(max(logged("grad_norm"), default=None)),
        "speed": formats.count(statistics.median(speeds)) if speeds else formats.MISSING,
    }


def _shortened(text: str) -> str:
    if len(text) <= _SAMPLE:
        return text
    return f"{text[:_SAMPLE]} … ({len(text) - _SAMPLE:,} more characters)"


def _pairs(mapping: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Keys and values as text."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in (mapping or {}).items()
    ]
