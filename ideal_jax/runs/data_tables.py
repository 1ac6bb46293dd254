"""What ``ideal-jax data`` found, on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ideal_jax.report.formats import count, percent

_BARS = " ▁▂▃▄▅▆▇█"
_PAIRS = 5  # of each kind that are printed
_WIDTH = 100  # characters of shared text

Rows = Sequence[dict[str, Any]]


def print_check(console: Console, summary: dict[str, Any], pairs: Mapping[str, Rows]) -> None:
    """Prints the tables.

    Args:
      console: where to.
      summary: the content of ``data_check/summary.json``.
      pairs: by file in ``data_check``, its rows.
    """
    console.print(_sets(summary))
    bins = len(summary["sets"][0]["lengths"]["counts"])
    console.print("targets: share of the tokens that the loss counts; cut: to data.row_length")
    console.print(f"histogram: lengths from 0 to the longest, in {bins} equal steps")
    console.print(_train(summary))
    if summary["benchmarks"]:
        found = {row["benchmark"] for row in summary["contamination"]}
        clean = [name for name in summary["benchmarks"] if name not in found]
        if found:
            console.print(_contamination(summary))
        if clean:
            console.print(f"no text in common with: {', '.join(clean)}", soft_wrap=True)
        _print_pairs(console, "largest overlaps with benchmarks", pairs["contamination"])
    else:
        console.print("no benchmarks to compare with: set data.benchmarks")
    _print_pairs(console, "largest overlaps with held-out sets", pairs["held_out"])


def sparkline(counts: Sequence[int]) -> str:
    """One character per count, its height in proportion; nothing where there is none."""
    largest = max([*counts, 1])
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-steps * value // largest)] for value in counts)


def _table(title: str, *columns: str) -> Table:
    """A table of text in the first column and numbers in the others."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    return table


def _sets(summary: dict[str, Any]) -> Table:
    columns = ("examples", "tokens", "targets", "cut", "longest", "histogram")
    table = _table("examples and tokens", "domain", *columns)
    last = None
    for row in summary["sets"]:
        if row["domain"] != last:
            last = row["domain"]
            table.add_row(escape(last))
        table.add_row(
            f"  {row['split']}",
            count(row["examples"]),
            count(row["tokens"]),
            percent(row["supervised"] / max(1, row["tokens"])),
            count(row["truncated"]),
            count(row["longest"]),
            sparkline(row["lengths"]["counts"]),
        )
    return table


def _train(summary: dict[str, Any]) -> Table:
    columns = [("duplicates", {"kind": kind}) for kind in ("exact", "near")]
    columns += [("held_out", {"set": part}) for part in ("reference", "test")]
    named = ("duplicates", "near", "like reference", "like test")
    table = _table("train examples that repeat", "domain", *named)
    for name in summary["left_out"]:
        numbers = [_examples(summary[part], domain=name, **keys) for part, keys in columns]
        table.add_row(escape(name), *map(count, numbers))
    return table


def _contamination(summary: dict[str, Any]) -> Table:
    columns = ("benchmark", "examples", "10 % of an item")
    table = _table("examples that share text with a benchmark", "set", *columns)
    for row in summary["contamination"]:
        where = f"{row['domain']}/{row['split']}"
        numbers = count(row["examples"]), count(row["clear"])
        table.add_row(escape(where), escape(row["benchmark"]), *numbers)
    return table


def _examples(rows: Rows, **keys: str) -> int:
    return sum(row["examples"] for row in rows if all(row[k] == v for k, v in keys.items()))


def _print_pairs(console: Console, title: str, rows: Rows) -> None:
    largest = sorted(rows, key=lambda row: -row["share"])[:_PAIRS]
    if largest:
        console.print(f"{title} ({len(largest)} of {count(len(rows))} pairs):")
    for row in largest:
        text = row["shared"]
        text = text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
        line = f"  {row['example']} has {percent(row['share'], 0)} of {row['item']}: “{text}”"
        console.print(line, soft_wrap=True, markup=False)
