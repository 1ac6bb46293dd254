"""The section that holds predictions against retraining."""

from typing import Any

from ideal_jax.report import figures, formats
from ideal_jax.report.load import Run

_Z = 1.959964  # half width of a 95 % interval in standard errors
_MEASURED = {
    "weights": "retraining with each token of one domain counting 1 ± b in the loss",
    "resample": "retraining with one domain resampled to 1 ± b times its examples",
    "metagradient": "the exact derivative of the run itself",
}


def verifications(run: Run) -> list[dict[str, Any]]:
    """One view per verification in the work directory."""
    return [_view(data) for data in run.verifications]


def _view(data: dict[str, Any]) -> dict[str, Any]:
    estimators = list(dict.fromkeys(row["estimator"] for row in data["summary"]))
    changes = list(dict.fromkeys(row["change"] for row in data["summary"]))
    largest = max(changes, default=0.0)
    name = f"{data['method']}{data['round']}"
    return {
        "round": data["round"],
        "measured": _MEASURED.get(data["method"], data["method"]),
        "orders": len(data["orders"]),
        "largest": f"{largest:g}" if largest else "",
        "rows": [_row(row) for row in data["summary"]],
        "charts": [
            (estimator, _scatter(data, estimator, largest, f"{name}-{number}"))
            for number, estimator in enumerate(estimators)
        ],
    }


def _row(row: dict[str, Any]) -> dict[str, str]:
    def shown(key: str, percent: bool = False) -> str:
        value, deviation = row[key], row[f"{key}_deviation"]
        if not formats.finite(value):
            return formats.MISSING
        text = formats.percent(value, 0) if percent else formats.significant(value)
        if not formats.finite(deviation):
            return text
        spread = formats.percent(deviation, 0) if percent else formats.significant(deviation, 2)
        return f"{text} ± {spread}"

    return {
        "estimator": row["estimator"],
        "change": f"{row['change']:g}" if row["change"] else formats.MISSING,
        "pearson": shown("pearson"),
        "spearman": shown("spearman"),
        "signs": shown("signs", percent=True),
        "clear_signs": shown("clear_signs", percent=True),
        "slope": shown("slope"),
    }


def _scatter(data: dict[str, Any], estimator: str, change: float, name: str) -> Any:
    predicted, errors, measured = [], [], []
    for order in data["orders"]:
        found = order["predictions"][estimator]
        truth = order["truth"][f"{change:g}"]
        predicted += [x for row in found["matrix"] for x in row]
        errors += [_Z * x for row in found["stderr"] for x in row]
        measured += [x for row in truth for x in row]
    label = (
        f"Predicted effects by {estimator} against measured ones, {len(predicted)} pairs of domain"
        " and capability; the correlations are in the table."
    )
    return figures.scatter(name, label, predicted, errors, measured)
