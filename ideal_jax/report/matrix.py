"""The influence section: matrices as heat tables, and sentences that say how to read them."""

import math
from collections.abc import Sequence
from typing import Any

from ideal_jax.mixture import FAILED_RESIDUAL, ROUGH_RESIDUAL
from ideal_jax.report import figures, formats, rounds
from ideal_jax.report.load import Run

_Z = 1.959964  # half width of a 95 % interval in standard errors
_REPLAYED = "metagradient"
ONLY_ORDER = (
    "Sizes of α mean nothing by themselves and differ from estimator to estimator; signs and order"
    " count."
)
_EXACT = 1e-3  # residual above which a solve is called approximate
_NO_LIMIT = "raise influence.damping"  # of files that do not say what helps


def influence(run: Run) -> list[dict[str, Any]]:
    """One view per round that has measured influence, and per call of ``ideal-jax influence``."""
    chosen = rounds.best(run)
    decided_by = None if chosen is None else max(chosen - 1, run.rounds[0].number)
    views = [
        _view(r.influence, f"round{r.number}", f"the model of round {r.number}")
        | {"open": rounds.is_open(run, r.number, decided_by)}
        for r in run.rounds
        if r.influence is not None
    ]
    known = {r.number for r in run.rounds if r.influence is not None}
    for data in run.measured:
        number = data["round"]
        if number in known:  # the same as the run's own
            continue
        at = data["model"] or "a checkpoint" if number is None else f"the model of round {number}"
        name = "checkpoint" if number is None else f"after{number}"
        views.append(_view(data, name, f"{at}, by ideal-jax influence") | {"open": True})
    return views


def rough_solves(residuals: Sequence[float], names: Sequence[str], remedy: str | None) -> str:
    """What to say of solves that left too much; "" if none did.

    Args:
      residuals: ‖(H+λ)s − g‖ / ‖g‖ of each reference.
      names: of the references.
      remedy: what makes the residuals smaller, if that is known.
    """
    if not residuals or not max(residuals) > ROUGH_RESIDUAL:
        return ""
    worst = max(residuals)
    rough = sum(x > ROUGH_RESIDUAL for x in residuals)
    return (
        f"warning: {rough} of {len(residuals)} solves left more than {ROUGH_RESIDUAL:g} of their"
        f" right-hand side, at most {worst:.2g} for {names[list(residuals).index(worst)]}: these"
        " numbers are rough, and their errors do not know it;"
        f" {remedy or _NO_LIMIT}"
    )


def _view(data: dict[str, Any], name: str, at: str) -> dict[str, Any]:
    """The matrix and all that is known of it; ``name`` is of its figure, ``at`` tells the model."""
    references, domains = data["references"], data["domains"]
    entries = [x for row in data["matrix"] for x in row] + data["alpha"]
    exponent = formats.magnitude(entries)
    exponent = 0 if -3 <= exponent <= 3 else exponent
    decimals = max(0, 2 - (formats.magnitude(entries) - exponent))
    largest = max((abs(x) for x in entries if math.isfinite(x)), default=0.0)
    unit = "nats per example" if data["reduction"] == "example" else "nats per token"

    def cell(value: float, stderr: float) -> dict[str, Any]:
        return {
            "value": formats.fixed(value / 10.0**exponent, decimals, signed=True),
            "stderr": formats.fixed(stderr / 10.0**exponent, decimals),
            "kind": _kind(value, stderr),
            "heat": f"{0.08 + 0.5 * abs(value) / (largest or 1):.2f}"
            if math.isfinite(value)
            else "0",
        }

    def cells(values: list[float], errors: list[float]) -> list[dict[str, Any]]:
        return [cell(value, stderr) for value, stderr in zip(values, errors, strict=True)]

    matrix, stderr = data["matrix"], data["stderr"]
    clear = sum(
        _kind(a, e) in ("better", "worse")
        for row, errors in zip(matrix, stderr, strict=True)
        for a, e in zip(row, errors, strict=True)
    )
    label = f"Effect α of each domain on the overall loss, at {at}: " + "; ".join(
        f"{name} {formats.significant(a)} ± {formats.significant(_Z * e)}"
        for name, a, e in zip(domains, data["alpha"], data["alpha_stderr"], strict=True)
    )
    return {
        "at": at,
        "domains": domains,
        "rows": [
            {"name": name, "cells": cells(matrix[i], stderr[i])}
            for i, name in enumerate(references)
        ],
        "alpha": cells(data["alpha"], data["alpha_stderr"]),
        "beta": [formats.percent(b, signed=True) for b in data["beta"] or []],
        "counts": _counts(data),
        "interval": _interval(data["interval"], exponent, decimals),
        "examples": _examples(data["examples"] or []),
        "shares": [formats.percent(share) for share in data["shares"] or []],
        "power": formats.power(exponent) if exponent else "",
        "unit": unit,
        "certain": clear,
        "entries": len(references) * len(domains),
        "example": _example(data),
        "exact": data["estimator"] == _REPLAYED,
        "warning": _warning(data),
        "facts": _facts(data),
        "errors": _errors(data),
        "layers": [str(layer) for layer in data["layers"] or []],
        "decision": _decision(data["decision"]),
        "figure": figures.intervals(
            f"alpha-{name}",
            label,
            domains,
            data["alpha"],
            [_Z * e for e in data["alpha_stderr"]],
            f"α, {unit}: left of zero lowers the overall loss",
        ),
    }


def _warning(data: dict[str, Any]) -> str:
    residuals = [x for x in data["solve_residual"] or [] if formats.finite(x)]
    if len(residuals) != len(data["references"]):
        return ""
    if max(residuals) >= FAILED_RESIDUAL:
        return (
            f"warning: a solve failed (residual {max(residuals):.2g}, where 1 is no better than no"
            " solution): these numbers mean nothing"
        )
    return rough_solves(residuals, data["references"], data["remedy"])


def _counts(data: dict[str, Any]) -> list[str]:
    """The examples of each domain that β proposes, and where known those that there are."""
    proposed = [formats.count(count) for count in data["counts"] or []]
    if not data["given"]:
        return proposed
    return [f"{formats.count(a)} → {b}" for a, b in zip(data["given"], proposed, strict=True)]


def _kind(value: float, stderr: float) -> str:
    """ "better" (lowers the loss), "worse", "unclear" (95 % interval holds 0) or "missing"."""
    if not math.isfinite(value):
        return "missing"
    if not abs(value) > _Z * stderr:  # also where the error is unknown
        return "unclear"
    return "better" if value < 0 else "worse"


def _example(data: dict[str, Any]) -> dict[str, str] | None:
    """The strongest clear entry, to be told as a sentence."""
    found = [
        (abs(value), i, j)
        for i, row in enumerate(data["matrix"])
        for j, value in enumerate(row)
        if _kind(value, data["stderr"][i][j]) in ("better", "worse")
    ]
    if not found:
        return None
    _, i, j = max(found, key=lambda entry: entry[0])
    return {
        "domain": data["domains"][j],
        "reference": data["references"][i],
        "verb": "lower" if data["matrix"][i][j] < 0 else "raise",
    }


def _facts(data: dict[str, Any]) -> list[dict[str, str]]:
    """Name, value and meaning of what was measured besides the matrix."""
    if data["estimator"] == _REPLAYED:
        meaning = "the derivative of the training run itself: no curvature, no solve, no sampling"
        return [{"name": "Method", "value": _REPLAYED, "meaning": meaning}]
    facts = [{"name": "Method", "value": data["estimator"], "meaning": "curvature estimator"}]
    if data["examples_used"] is not None:
        value, meaning = formats.count(data["examples_used"]), "training examples scored"
        if data["ended"]:
            meaning += f"; {data['ended']}"
        facts.append({"name": "Examples", "value": value, "meaning": meaning})
    if data["flops_share"] is not None:
        value, meaning = formats.percent(data["flops_share"]), "of the round’s training, in FLOPs"
        facts.append({"name": "Cost", "value": value, "meaning": meaning})
    if data["important_share"] is not None:
        meaning = "of the α of all layers flows through those that count"
        value = formats.percent(data["important_share"])
        facts.append({"name": "Important layers", "value": value, "meaning": meaning})
    common = data["common_mode"]
    if common is not None:
        meaning = "of the effect is “more data of any kind”; the rest tells domains apart"
        if data["centred"]:
            meaning += ". It is measured first and then taken out, so that α sums to zero"
        facts.append(
            {"name": "Common mode", "value": formats.percent(common, 0), "meaning": meaning}
        )
    if data["centred"] is False:
        meaning = "the total volume may grow, so part of every number is “more data of any kind”"
        facts.append({"name": "Centred", "value": "no", "meaning": meaning})
    residuals = [x for x in data["solve_residual"] or [] if formats.finite(x)]
    if residuals:
        worst = max(residuals)
        meaning = "largest relative error of the linear solves; "
        meaning += (
            "solved for this curvature"
            if worst <= _EXACT
            else "above 10⁻³, so the numbers are approximate"
        )
        facts.append(
            {"name": "Solve residual", "value": formats.significant(worst, 2), "meaning": meaning}
        )
    return facts + _damping(data["damping"])


def _damping(damping: Any) -> list[dict[str, str]]:
    """The absolute damping λ, and what was asked for where that is known."""
    asked = damping if isinstance(damping, dict) else {"absolute": damping}
    value = asked.get("absolute")
    if not formats.finite(value):
        return []
    meaning = "added to the curvature before it is inverted"
    if formats.finite(asked.get("value")):
        meaning += f" ({asked.get('mode', 'asked')} {formats.significant(asked['value'], 2)})"
    return [{"name": "Damping λ", "value": formats.significant(value, 2), "meaning": meaning}]


def _interval(
    interval: dict[str, Any] | None, exponent: int, decimals: int
) -> dict[str, Any] | None:
    """The bootstrap interval of every α, in the units of the table."""
    if interval is None:
        return None

    def text(value: float) -> str:
        return formats.fixed(value / 10.0**exponent, decimals, signed=True)

    pairs = zip(interval["alpha_low"], interval["alpha_high"], strict=True)
    return {
        "level": formats.percent(interval["level"], 0),
        "cells": [f"{text(low)} … {text(high)}" for low, high in pairs],
    }


def _examples(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each capability the examples with the lowest and the highest effect."""
    found: dict[str, list[dict[str, str]]] = {}
    for example in examples:
        found.setdefault(example["reference"], []).append(
            {
                "kind": "better" if example["effect"] < 0 else "worse",
                "effect": formats.significant(example["effect"], 2),
                **{key: example[key] for key in ("domain", "id", "prompt", "response")},
            }
        )
    return [{"name": name, "rows": rows} for name, rows in found.items()]


def _errors(data: dict[str, Any]) -> list[dict[str, str]]:
    """Per reference: its weight, its solve residual, and where its uncertainty comes from."""
    rows = []
    for i, name in enumerate(data["references"]):
        weights, residuals = data["reference_shares"], data["solve_residual"]
        rows.append(
            {
                "name": name,
                "weight": formats.percent(weights[i]) if weights else formats.MISSING,
                "residual": formats.significant(residuals[i], 2) if residuals else formats.MISSING,
                "train": _typical(data["stderr_train"], i),
                "reference": _typical(data["stderr_reference"], i),
            }
        )
    return rows


def _typical(errors: list[list[float]] | None, i: int) -> str:
    """Root mean square of one row."""
    row = [x for x in errors[i] if math.isfinite(x)] if errors else []
    if not row:
        return formats.MISSING
    return formats.significant(math.sqrt(sum(x * x for x in row) / len(row)), 2)


def _decision(decision: dict[str, Any] | None) -> dict[str, Any] | None:
    if decision is None or (decision["stopped"] is None and not decision["reason"]):
        return None
    return {"stopped": bool(decision["stopped"]), "reason": decision["reason"] or ""}
