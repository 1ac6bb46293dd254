"""What a run ends with on the terminal: the mixtures, the scores, where the report lies."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ideal_jax.report import formats
from ideal_jax.report.matrix import ONLY_ORDER


def print_summary(results: dict[str, Any], weights: Sequence[float], report: pathlib.Path) -> None:
    """Prints two tables.

    Args:
      results: the content of ``results.json``.
      weights: v, the weight of each capability; sums to 1.
      report: the path to name.
    """
    mixture = Table(title="mixture: examples (share)")
    mixture.add_column("domain")
    scores = Table(title="scores per round")
    for column in ("round", "exact match (test)", "reference loss", "test loss"):
        scores.add_column(column, justify="right")
    for record in results["rounds"]:
        mark = " *" if record["round"] == results["best_round"] else ""
        mixture.add_column(f"round {record['round']}{mark}", justify="right")
        overall, error = record["overall"], record["overall_stderr"]
        losses = zip(weights, record["test_loss"].values(), strict=True)
        scores.add_row(
            f"{record['round']}{mark}",
            "–" if overall is None else f"{overall:.3f} ± {error:.3f}",
            f"{record['selection_loss']:.4f}",
            f"{sum(v * loss for v, loss in losses):.4f}",
        )
    counts = [record["mixture"] for record in results["rounds"]]
    for name in counts[0]:
        shares = (f"{c[name]} ({c[name] / sum(c.values()):.1%})" for c in counts)
        mixture.add_row(name, *shares)
    console = Console(highlight=False)
    console.print(mixture)
    console.print(scores)
    console.print(f"* best round: {results['best_round_reason']}")
    console.print("losses in nats per token; reference loss: on that half")
    console.print(f"report: {report}", soft_wrap=True)


def print_influence(record: dict[str, Any], file: pathlib.Path) -> None:
    """Prints the content of an ``influence.json`` that lies at ``file``."""
    per = "example" if record["reduction"] == "example" else "token"
    table = Table(title=f"influence by {record['estimator']}, nats per {per}, ± standard error")
    table.add_column("loss on ↓, more of →")
    for domain in record["domains"]:
        table.add_column(domain, justify="right")
    rows = list(zip(record["references"], record["matrix"], record["stderr"], strict=True))
    rows.append(("overall (α)", record["alpha"], record["alpha_stderr"]))
    for k, (name, values, errors) in enumerate(rows):
        cells = (f"{x:+.3g} ± {e:.2g}" for x, e in zip(values, errors, strict=True))
        table.add_row(name, *cells, end_section=k == len(rows) - 2)
    table.add_row("proposed change (β)", *(f"{100 * b:+.1f}%" for b in record["beta"]))
    counts = [f"{count:,}" for count in record["counts"]]
    if "given" in record:
        counts = [f"{a:,} → {b}" for a, b in zip(record["given"], counts, strict=True)]
    table.add_row("proposed examples", *counts)
    console = Console(highlight=False)
    if "model" in record:
        console.print(f"measured at {record['model']}", markup=False, soft_wrap=True)
    console.print(table)
    console.print(f"negative: more of the domain lowers the loss. {record['decision']['reason']}")
    console.print(ONLY_ORDER, soft_wrap=True)
    console.print(f"influence: {file}", soft_wrap=True)


def speed_line(speed: Mapping[str, Any]) -> str:
    """A ``speed.json`` in one line; what is unknown is left out."""
    seconds, told = speed["seconds"], [f"{formats.duration(speed['step_seconds'])} a step"]
    if "tokens_per_second" in speed:
        padded, real, supervised = (
            f"{speed[f'{kind}_per_second']:,.0f}"
            for kind in ("positions", "tokens", "supervised_tokens")
        )
        told.append(f"{padded} tokens/s ({real} non-padding, {supervised} supervised)")
    if "mfu" in speed:
        step, peak = formats.flops(speed["flops_per_step"]), formats.flops(speed["peak_flops"])
        told.append(f"MFU {speed['mfu']:.1%} ({step} a step, peak {peak}/s)")
    told.append(f"compiled in {formats.duration(seconds['compile'])}")
    if speed["peak_bytes"]:
        told.append(f"peak memory {formats.gibibytes(speed['peak_bytes'])}")
    parts = [
        f"{name} {value / seconds['all']:.0%}"
        for name, value in seconds.items()
        if name not in ("all", "step") and value >= 0.005 * seconds["all"]
    ]
    told.append(f"goodput {speed['goodput']:.0%}")
    return ", ".join(told) + (f" ({', '.join(parts)})" if parts else "")
