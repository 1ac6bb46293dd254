"""What a run ends with on the terminal: the mixtures, the scores, where the report lies."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ideal_jax.report import changes, formats
from ideal_jax.report.matrix import ONLY_ORDER
from ideal_jax.runs.influence_record import solve_warning


def print_summary(results: dict[str, Any], weights: Sequence[float], report: pathlib.Path) -> None:
    """Prints the mixtures, the scores, and what the chosen round changed.

    Args:
      results: the content of ``results.json``.
      weights: v, the weight of each capability; sums to 1.
      report: the path to name.
    """
    scores = Table(title="scores per round, ± standard error")
    for column in ("round", "reference loss", "against given", "test loss", "exact match (test)"):
        scores.add_column(column, justify="right")
    for record in results["rounds"]:
        overall, error, against = (
            record[k] for k in ("overall", "overall_stderr", "against_given")
        )
        losses = zip(weights, record["test_loss"].values(), strict=True)
        scores.add_row(
            _marked(results, record),
            f"{record['selection_loss']:.4f}",
            changes.signed(against["difference"], against["stderr"]) if record["round"] else "",
            f"{sum(v * loss for v, loss in losses):.4f}",
            "–" if overall is None else f"{overall:.3f} ± {error:.3f}",
        )
    console = Console(highlight=False)
    console.print(_mixtures(results))
    console.print(scores)
    console.print("losses in nats per token; reference loss: on the half that chooses the round")
    if results["best_round"] != 0:
        _print_changes(console, results)
    console.print(f"* round {results['best_round']} is chosen: {results['best_round_reason']}")
    console.print(f"report: {report}", soft_wrap=True)


def _marked(results: dict[str, Any], record: dict[str, Any]) -> str:
    return f"{record['round']}{' *' if record['round'] == results['best_round'] else ''}"


def _mixtures(results: dict[str, Any]) -> Table:
    """Examples, shares and proposed changes of every round."""
    table = Table(title="mixture: examples (share), proposed change β")
    table.add_column("domain")
    rounds = results["rounds"]
    for record in rounds:
        table.add_column(f"round {_marked(results, record)}", justify="right")
    for name in rounds[0]["mixture"]:
        cells = []
        for before, record in zip([None, *rounds], rounds, strict=False):
            count = record["mixture"][name]
            cell = f"{count} ({count / sum(record['mixture'].values()):.1%})"
            if before is not None:
                beta = record["beta"][name]
                made = changes.made(beta, before["mixture"][name], count)
                cell += f"\nβ {formats.percent(beta, signed=True)}{made and f', made {made}'}"
            cells.append(cell)
        table.add_row(name, *cells)
    if len(rounds) > 1:
        table.caption = "made: what bounds, a kept total and rounding left of β"
    return table


def _print_changes(console: Console, results: dict[str, Any]) -> None:
    """What the chosen round is for each capability, beside the given mixture."""
    number, level = results["best_round"], f"{100 * changes.level(results):g} %"
    found = changes.capability_changes(results, number)
    table = Table(title=f"round {number} against the given mixture, ± standard error")
    table.add_column("capability")
    for column in ("reference loss", "", "exact match (test)"):
        table.add_column(column, justify="right")
    for change in found:
        score = "–"
        if formats.finite(change.score_difference):
            score = changes.points(change.score_difference, change.score_stderr, percent=True)
        told = changes.signed(change.difference, change.stderr)
        table.add_row(change.name, told, change.verdict, score)
    console.print(table)
    worse = changes.worse(found) or "none"
    console.print(f"worse than with the given mixture, beyond the {level} error: {worse}")
    if lower := changes.lower_scores(found, percent=True):
        console.print(f"lower exact match, beyond the {level} error: {lower}; decides nothing")


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
    if warning := solve_warning(record):
        console.print(warning, soft_wrap=True)
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
