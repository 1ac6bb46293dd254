"""A matplotlib figure as SVG that lives inside a page: its colours, its font, unique ids."""

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure

# Colours are named by the page, which knows whether it is dark. matplotlib wants hexadecimal
# values, so each name has a stand-in here that `embed` replaces by the CSS variable.
INK, MUTED, LINE = "#000001", "#000002", "#000003"
GIVEN, OTHER, CHOSEN = "#000004", "#000005", "#000006"
SURFACE = "#000007"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    GIVEN: "var(--given)",
    OTHER: "var(--other)",
    CHOSEN: "var(--chosen)",
    SURFACE: "var(--surface)",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ideal-jax",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.solid_capstyle": "round",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw inside this: the same figure whatever the user's matplotlibrc and fonts."""
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def embed(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element.

    Args:
      figure: drawn inside `drawing`.
      name: unique in the page; prefixes every id.
      label: what a screen reader says.
    """
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # A style element would apply to the whole page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    width, height = figure.get_size_inches() * 72
    opening = Markup(
        '<svg role="img" aria-label="{}" viewBox="0 0 {:.0f} {:.0f}" style="max-width:{:.0f}px">'
    ).format(label, width, height, 1.4 * width)
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], name), text[text.index(">") + 1 :])
    return opening + Markup(re.sub(r"\s*\n\s*", "\n", body))


def caption(text: str, cells: int = 14) -> str:
    """A name short enough for an axis: at most two lines, the middle left out if need be."""
    clean = "".join(c if c.isprintable() else "·" for c in text)
    if _cells(clean) <= cells:
        return clean
    first = _prefix(clean, cells)
    space = first.rfind(" ")
    if clean[len(first)] != " " and space > 0:
        first = first[:space]
    rest = clean[len(first) :].strip()
    if _cells(rest) > cells:
        rest = "…" + _prefix(rest[::-1], cells - 1)[::-1]
    return f"{first.strip()}\n{rest}"


def _cells(text: str) -> int:
    """Width in cells; wide (East Asian) characters take two."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _prefix(text: str, cells: int) -> str:
    """The longest prefix of at most so many cells."""
    end = len(text)
    while _cells(text[:end]) > cells:
        end -= 1
    return text[:end]


def _tag(tag: str, name: str) -> str:
    """One tag with page colours, the page's font, and ids that are unique in the page."""
    for stand_in, variable in _VARIABLES.items():
        tag = tag.replace(stand_in, variable)
    tag = re.sub(r" ?font-family: [^;\"]*;?", "", tag)
    tag = re.sub(r"font: (?:\w+ )*([\d.]+px) '[^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", tag)
    tag = re.sub(r' id="(?!m|p[0-9a-f]{10})[^"]*"', "", tag)  # only markers and clips are used
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", tag)
    return tag.replace("xlink:href", "href")
