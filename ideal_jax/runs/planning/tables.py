"""A plan on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ideal_jax.runs.planning.forecast import MFU
from ideal_jax.runs.planning.search import Candidate

_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_SHOWN = 8
_SHORT = {
    "params": "param",
    "optimizer": "optim",
    "gradients": "grads",
    "activations": "saved",
    "gathered": "gath.",
    "curvature": "curv.",
    "vectors": "vect.",
    "at work": "work",
}


def print_plan(console: Console, plan: Mapping[str, Any], price: float) -> None:
    """Prints the tables of ``plan.json``."""
    mesh = " · ".join(f"{key}={value}" for key, value in plan["setting"].items())
    trained = plan["trained_parameters"]
    adapters = f", {trained / 1e6:,.0f} M trained" if trained != plan["parameters"] else ""
    console.print(
        f"{plan['devices']} × {plan['chip']} ({plan['topology']}),"
        f" {plan['parameters'] / 1e6:,.1f} M parameters{adapters}"
    )
    console.print(mesh, soft_wrap=True)
    console.print(_memory(plan))
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    unit, size = _unit(plan["needed_bytes"])
    console.print(
        f"{verdict}: {plan['fullest']} needs {plan['needed_bytes'] / size:.1f} of "
        f"{plan['usable_bytes'] / size:,.1f} {unit}; largest training batch that fits this mesh: "
        f"{plan['largest_batch']} rows",
        soft_wrap=True,
    )
    step = plan["step"]
    sent = sum(step["collective_bytes_per_device"].values())
    console.print(
        f"training step: {step['seconds']:.3g} s, {step['tokens_per_second']:,.0f} tokens/s, "
        f"MFU {step['mfu']:.1%}; {step['flops_per_device']:.3g} FLOPs, "
        f"{_told(step['hbm_bytes_per_device'])} of memory traffic and {_told(sent)}"
        f" of collectives a device (efficiency of the matrix unit: {plan['efficiency']:.3f})",
        soft_wrap=True,
    )
    console.print(f"MFU = {MFU}", soft_wrap=True)
    console.print(_time(plan, price))


def print_compiled(console: Console, compiled: Sequence[Mapping[str, Any]]) -> None:
    """Prints what the compiler allots, beside nothing else."""
    unit, size = _unit(max((row["peak_bytes"] for row in compiled), default=0))
    table = _table(f"compiled ahead of time, one device, {unit}", "program", "seconds")
    for column in ("arguments", "temporaries", "peak", "collectives", "FLOPs", "fits"):
        table.add_column(column, justify="right")
    for row in compiled:
        sent = row["collective_bytes"]
        table.add_row(
            row["name"],
            f"{row['seconds']:.0f}",
            f"{row['argument_bytes'] / size:.2f}",
            f"{row['temp_bytes'] / size:.2f}",
            f"{row['peak_bytes'] / size:.2f}",
            "–" if sent is None else f"{sum(sent.values()) / size:.2f}",
            f"{row['flops']:.3g}",
            "yes" if row["fits"] else "no",
        )
    console.print(table)


def print_candidates(console: Console, found: Sequence[Candidate]) -> None:
    """Prints the best settings that a search found."""
    table = _table("search: the fastest that fit, by formula", "replica × fsdp × tensor")
    unit, size = _unit(max(c.room.needed for c in found[:_SHOWN]))
    for column in ("remat", "micro-batches", unit, "s/step", "MFU"):
        table.add_column(column, justify="right")
    for c in found[:_SHOWN]:
        s = c.setting
        table.add_row(
            f"{s.replica} × {s.fsdp} × {s.tensor}",
            s.cfg.remat,
            str(s.micro_batches),
            f"{c.room.needed / size:.1f}",
            f"{c.seconds:.3g}",
            f"{c.mfu:.1%}",
        )
    console.print(table)


def _unit(largest: float) -> tuple[str, int]:
    """The largest unit of which there is at least one; its bytes."""
    found = next((unit for unit, size in _UNITS.items() if largest >= size), "KiB")
    return found, _UNITS[found]


def _told(count: float) -> str:
    unit, size = _unit(count)
    return f"{count / size:,.1f} {unit}"


def _memory(plan: Mapping[str, Any]) -> Table:
    classes = list(dict.fromkeys(kind for phase in plan["memory"].values() for kind in phase))
    heads = (_SHORT.get(kind, kind) for kind in classes)
    unit, size = _unit(plan["needed_bytes"])
    table = _table(f"memory of one device by formula, {unit}", "program", *heads, "all")
    for name, phase in plan["memory"].items():
        cells = [f"{phase[kind] / size:.1f}" if kind in phase else "" for kind in classes]
        table.add_row(name, *cells, f"{sum(phase.values()) / size:.1f}")
    return table


def _time(plan: Mapping[str, Any], price: float) -> Table:
    table = _table("the whole run", "program", "times", "s each", "hours", "chip-hours")
    if price:
        table.add_column("money", justify="right")
    rows = [*plan["phases"].items(), ("all", {"hours": plan["hours"]})]
    for name, phase in rows:
        chips = phase["hours"] * plan["devices"]
        table.add_row(
            name,
            f"{phase['executions']:,.0f}" if "executions" in phase else "",
            f"{phase['seconds_each']:.3g}" if "seconds_each" in phase else "",
            f"{phase['hours']:.2f}",
            f"{chips:,.1f}",
            *([f"{chips * price:,.0f}"] if price else []),
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
