"""The figures of the page: arrays in, SVG out.

All are drawn for a phone's width and grow a little on a wide screen. Which round is meant is said
by order and marker as well as by colour.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ideal_jax.report.svg import (
    CHOSEN,
    GIVEN,
    INK,
    LINE,
    MUTED,
    OTHER,
    SURFACE,
    caption,
    drawing,
    embed,
)

_WIDTH = 360  # CSS pixels; one matplotlib point is one pixel here
_COLOURS = {"given": GIVEN, "other": OTHER, "chosen": CHOSEN}
_MARKERS = "osD^vPX*"
_POINTS = 120  # drawn per loss curve; more would be finer than the screen


class Series(NamedTuple):
    """One round in a chart: a value (and the half width of its interval) for each name."""

    label: str
    role: str
    values: Sequence[float]
    errors: Sequence[float] | None = None


class Curve(NamedTuple):
    """The training loss of one round."""

    number: int
    role: str
    steps: Sequence[float]
    losses: Sequence[float]


def bars(name: str, label: str, names: Sequence[str], series: Sequence[Series]) -> Markup:
    """Shares as grouped horizontal bars: one group per name, one bar per series, top to bottom."""
    thickness = 11 if len(series) <= 4 else 8
    group = thickness * len(series) + 9
    with drawing():
        figure, axes = _canvas(names, group, len(series), right=44)
        for k, one in enumerate(series):
            for j, value in enumerate(one.values):
                if not math.isfinite(value):
                    continue
                y = j + (4.5 + (k + 0.5) * thickness) / group - 0.5
                axes.barh(y, value, height=(thickness - 1.5) / group, color=_COLOURS[one.role])
                axes.annotate(
                    f"{100 * value:.1f}%",
                    (value, y),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center_baseline",
                    fontsize=8.5 if thickness > 8 else 7.5,
                    color=INK if one.role == "chosen" else MUTED,
                )
        axes.set_xlim(0, max((v for s in series for v in s.values if v > 0), default=1.0))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.axvline(0, color=LINE, linewidth=1)
        _legend(figure, series, bars=True)
        return embed(figure, name, label)


def dots(
    name: str, label: str, names: Sequence[str], series: Sequence[Series], axis: str
) -> Markup:
    """Values with whiskers: one row per name, one marker per series, top to bottom."""
    spacing = 10 if len(series) <= 4 else 8
    group = spacing * len(series) + 10
    with drawing():
        figure, axes = _canvas(names, group, len(series), right=14, bottom=34)
        for j in range(1, len(names)):
            axes.axhline(j - 0.5, color=LINE, linewidth=0.6)
        for k, one in enumerate(series):
            errors = one.errors or [math.nan] * len(names)
            for j, (value, error) in enumerate(zip(one.values, errors, strict=True)):
                if not math.isfinite(value):
                    continue
                y = j + (5 + (k + 0.5) * spacing) / group - 0.5
                _whisker(axes, value, error, y, _COLOURS[one.role])
                axes.plot(value, y, _MARKERS[k % 8], color=_COLOURS[one.role], markersize=5)
        _value_axis(axes, axis)
        _legend(figure, series)
        return embed(figure, name, label)


def intervals(
    name: str,
    label: str,
    names: Sequence[str],
    values: Sequence[float],
    errors: Sequence[float],
    axis: str,
) -> Markup:
    """Values with intervals around a zero line; hollow where the interval includes zero."""
    with drawing():
        figure, axes = _canvas(names, 22, 0, right=14, bottom=34)
        axes.axvline(0, color=INK, linewidth=1)
        for j, (value, error) in enumerate(zip(values, errors, strict=True)):
            if not math.isfinite(value):
                continue
            clear = abs(value) > error
            colour = CHOSEN if clear else MUTED
            _whisker(axes, value, error, j, colour)
            face = colour if clear else SURFACE
            axes.plot(value, j, "o", color=colour, markerfacecolor=face, markersize=6)
        _value_axis(axes, axis)
        return embed(figure, name, label)


def scatter(
    name: str,
    label: str,
    predicted: Sequence[float],
    errors: Sequence[float],
    measured: Sequence[float],
) -> Markup:
    """Measured effects over predicted ones with their intervals, and the line through the origin.

    Hollow where the interval includes zero.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    shown = np.isfinite(x) & np.isfinite(y)
    with drawing():
        figure = Figure(figsize=(300 / 72, 230 / 72))
        axes = figure.add_axes((0.19, 0.19, 0.77, 0.76))
        axes.axhline(0, color=LINE, linewidth=1)
        axes.axvline(0, color=LINE, linewidth=1)
        if np.any(x[shown]):
            slope = float(x[shown] @ y[shown] / (x[shown] @ x[shown]))
            ends = np.array([x[shown].min(), x[shown].max()])
            axes.plot(ends, slope * ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for a, error, b in zip(x[shown], np.asarray(errors)[shown], y[shown], strict=True):
            clear = abs(a) > error
            colour = CHOSEN if clear else MUTED
            _whisker(axes, a, error, b, colour)
            face = colour if clear else SURFACE
            axes.plot(a, b, "o", color=colour, markerfacecolor=face, markersize=4.5)
        axes.tick_params(axis="y", colors=MUTED)
        axes.set_ylabel("measured", fontsize=9)
        axes.locator_params(axis="y", nbins=5)
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set_fontsize(8)
        _value_axis(axes, "predicted")
        return embed(figure, name, label)


def curves(rounds: Sequence[Curve]) -> list[Markup]:
    """One small chart per round on common axes, with the other rounds faint behind it."""
    thinned = [_thin(curve) for curve in rounds]
    losses = [x for curve in thinned for x in curve.losses if math.isfinite(x)]
    steps = [x for curve in thinned for x in curve.steps]
    charts = []
    for curve in thinned:
        with drawing():
            figure = Figure(figsize=(300 / 72, 180 / 72))
            axes = figure.add_axes((0.14, 0.2, 0.8, 0.74))
            for other in thinned:
                if other is not curve:
                    axes.plot(other.steps, other.losses, color=LINE, linewidth=1)
            marker = "o" if len(curve.steps) < 2 else ""
            colour = _COLOURS[curve.role]
            axes.plot(curve.steps, curve.losses, color=colour, linewidth=1.8, marker=marker)
            _limits(axes.set_xlim, steps, 0.02)
            _limits(axes.set_ylim, losses, 0.06)
            axes.locator_params(nbins=5)
            axes.tick_params(axis="y", colors=MUTED)
            axes.grid(axis="y")
            axes.set_xlabel("step", fontsize=9)
            label = _curve_label(curve)
            charts.append(embed(figure, f"curve{curve.number}", label))
    return charts


def _curve_label(curve: Curve) -> str:
    first, last = curve.losses[0], curve.losses[-1]
    return (
        f"Training loss of round {curve.number}: from {first:.3f} at step {curve.steps[0]:.0f}"
        f" to {last:.3f} at step {curve.steps[-1]:.0f}."
    )


def _thin(curve: Curve) -> Curve:
    """At most `_POINTS` points, each the mean of its neighbours."""
    parts = min(_POINTS, len(curve.steps))

    def means(values: Sequence[float]) -> list[float]:
        pieces = np.array_split(np.asarray(values, np.float64), parts)
        return [float(piece.mean()) for piece in pieces]

    return curve._replace(steps=means(curve.steps), losses=means(curve.losses))


def _canvas(
    names: Sequence[str], group: float, series: int, right: float, bottom: float = 6
) -> tuple[Figure, Axes]:
    """A figure with one row of ``group`` pixels per name and room for names and legend."""
    captions = [caption(text) for text in names]
    left = 10 + 6.2 * max((len(line) for text in captions for line in text.split("\n")), default=0)
    top = 6 + 18 * math.ceil(series / 4)
    height = top + group * len(names) + bottom
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    box = (left / _WIDTH, bottom / height, (_WIDTH - left - right) / _WIDTH)
    axes = figure.add_axes((*box, group * len(names) / height))
    axes.set_yticks(range(len(names)), captions)
    for text in axes.get_yticklabels():
        text.set(fontsize=8 if "\n" in text.get_text() else 10, linespacing=1.1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes


def _whisker(axes: Axes, value: float, error: float, y: float, colour: str) -> None:
    if math.isfinite(error):
        axes.plot([value - error, value + error], [y, y], color=colour, linewidth=1.4)


def _value_axis(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, fontsize=9)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(axis="x")
    axes.margins(x=0.04)
    axes.ticklabel_format(axis="x", useOffset=False, scilimits=(-3, 5))
    axes.xaxis.get_offset_text().set_fontsize(8)


def _legend(figure: Figure, series: Sequence[Series], bars: bool = False) -> None:
    if len(series) < 2:
        return
    handles = [
        Line2D(
            [],
            [],
            color=_COLOURS[one.role],
            marker="s" if bars else _MARKERS[k % 8],
            markersize=7 if bars else 5,
            linestyle="",
            label=one.label,
        )
        for k, one in enumerate(series)
    ]
    rows = math.ceil(len(handles) / 4)  # matplotlib fills columns; people read rows
    order = [4 * row + column for column in range(4) for row in range(rows)]
    figure.legend(
        handles=[handles[k] for k in order if k < len(handles)],
        loc="upper left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        fontsize=9,
        handletextpad=0.1,
        columnspacing=1.2,
        borderaxespad=0.1,
    )


def _limits(
    setter: Callable[[float, float], object], values: Sequence[float], margin: float
) -> None:
    """Common limits of all panels; a single value gets room around it."""
    if not values:
        return
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.5
    setter(low - room, high + room)
