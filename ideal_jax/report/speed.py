"""How fast each round trained, and what its time went into."""

from typing import Any

from ideal_jax.report import formats, rounds
from ideal_jax.report.load import Run

# Parts of a training's wall time by their names in speed.json.
_PARTS = {
    "step": "Goodput",
    "compile": "Compiling",
    "data": "Data",
    "checkpoint": "Checkpoints",
    "start": "Starting",
    "lost": "Lost",
    "rest": "Rest",
}


def speed(run: Run) -> dict[str, Any] | None:
    """Two small tables and the formula of MFU in numbers; None before a training is done."""
    known = [(round_.number, round_.speed) for round_ in run.rounds if round_.speed]
    if not known:
        return None
    rows = []
    for number, found in known:
        seconds = found["seconds"]
        rows.append(
            {
                "label": rounds.label(run, number),
                "step": formats.duration(found["step_seconds"]),
                "positions": formats.count(found["positions_per_second"]),
                "tokens": formats.count(found["tokens_per_second"]),
                "supervised": formats.count(found["supervised_tokens_per_second"]),
                "mfu": formats.MISSING if found["mfu"] is None else formats.percent(found["mfu"]),
                "memory": formats.gibibytes(found["peak_bytes"]),
                "compiled": formats.duration(seconds.get("compile")),
                "whole": formats.duration(seconds.get("all")),
                "parts": [_share(found, name) for name in _PARTS],
            }
        )
    last = known[-1][1]
    return {"rows": rows, "parts": list(_PARTS.values()), "formula": _formula(last)}


def _share(found: dict[str, Any], name: str) -> str:
    """Share of the wall time that a part took."""
    part, whole = found["seconds"].get(name), found["seconds"].get("all")
    if not part or not whole:
        return formats.MISSING
    steps = f" ({found['lost_steps']} steps)" if name == "lost" else ""
    return formats.percent(part / whole) + steps


def _formula(found: dict[str, Any]) -> str:
    """MFU of one training with its numbers put in."""
    devices = f"{found['devices']} × {found['device']}"
    if found["mfu"] is None:
        return f"{devices} has no peak in the table of chips, so there is no MFU."
    return (
        f"In the last round {formats.flops(found['flops_per_step'])} / "
        f"({formats.duration(found['step_seconds'])} × {formats.flops(found['peak_flops'])}/s) "
        f"= {formats.percent(found['mfu'])}, on {devices}."
    )
