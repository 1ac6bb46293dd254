"""Numbers as a person reads them. Pure functions of numbers to text."""

import math
from collections.abc import Iterable
from typing import Any

MISSING = "–"
MINUS = "−"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def finite(x: Any) -> bool:
    """Whether ``x`` is a number that can be shown and drawn."""
    return isinstance(x, int | float) and math.isfinite(x)


def fixed(x: float | None, decimals: int = 3, signed: bool = False) -> str:
    """``x`` with thousands separators and a real minus sign; an en dash where there is none."""
    if x is None:
        return MISSING
    if not math.isfinite(x):
        return "not finite"
    text = f"{x:{'+' if signed else ''},.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def count(x: float | None) -> str:
    """A whole number."""
    return fixed(x, 0)


def percent(x: float | None, decimals: int = 1, signed: bool = False) -> str:
    """A fraction as percent."""
    if not finite(x):
        return fixed(x)
    return fixed(100 * (x or 0.0), decimals, signed) + "%"


def significant(x: float | None, digits: int = 3) -> str:
    """``x`` to so many significant digits, in powers of ten where that is shorter."""
    if not finite(x) or not x:
        return fixed(x, 0)
    exponent = magnitude([x])
    if -4 <= exponent <= 5:
        return fixed(x, max(0, digits - 1 - exponent))
    mantissa = fixed(x / 10.0**exponent, digits - 1)
    return f"{mantissa} × {power(exponent)}"


def power(exponent: int) -> str:
    """Ten to the ``exponent``, as text."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def magnitude(values: Iterable[float | None]) -> int:
    """The decimal exponent of the largest finite magnitude; 0 if there is none."""
    largest = max((abs(x) for x in values if x is not None and finite(x)), default=0.0)
    return math.floor(math.log10(largest)) if largest else 0


def decimals_for(stderr: float | None, default: int = 3) -> int:
    """Decimals that show an error to two significant digits."""
    if not finite(stderr) or not stderr:
        return default
    return min(6, max(0, 1 - magnitude([stderr])))


def plus_minus(x: float | None, stderr: float | None, default: int = 3) -> str:
    """``x ± stderr``, both to the digits the error supports."""
    decimals = decimals_for(stderr, default)
    text = fixed(x, decimals)
    return f"{text} ± {fixed(stderr, decimals)}" if finite(x) and finite(stderr) else text


def score(x: float | None, stderr: float | None, as_percent: bool) -> str:
    """A score with its error: percent for fractions, plain for anything else."""
    if not as_percent:
        return plus_minus(x, stderr)
    text = percent(x)
    return f"{text} ± {percent(stderr)}" if finite(x) and finite(stderr) else text


def flops(x: float | None) -> str:
    """Floating-point operations with an SI prefix."""
    if not finite(x) or not x:
        return fixed(x, 0)
    step = min(max(magnitude([x]) // 3, 0), len(_PREFIXES) - 1)
    scaled = x / 1000.0**step
    return f"{fixed(scaled, max(0, 2 - magnitude([scaled])))} {_PREFIXES[step]}FLOP"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter; whole seconds stay whole."""
    if seconds is None or not finite(seconds):
        return fixed(seconds)
    if seconds < 0.9995:
        return f"{significant(1000 * seconds)} ms"
    if seconds < 59.95:
        return f"{seconds:.{0 if isinstance(seconds, int) else 1}f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def gibibytes(x: float | None) -> str:
    """Bytes in GiB."""
    return fixed(x) if x is None or not finite(x) else f"{fixed(x / 2**30, 2)} GiB"
