"""What can be read from a compiled program's text."""

import math
import re
from collections import Counter
from typing import NamedTuple

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}
_SHAPE = re.compile(r"\b(pred|token|bf16|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class _Computation(NamedTuple):
    """What one computation of an HLO module does itself, and which others it calls.

    Attributes:
      bytes: of collectives, by kind.
      calls: (computation, times; or the condition of the loop whose body it is).
      limit: the number that the first of the loop's values is compared with, if this is the
        condition of a counting loop.
    """

    bytes: Counter[str]
    calls: list[tuple[str, int | str]]
    limit: list[int]


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes of collective operations on one device, by kind.

    The larger of an operation's operands and results counts. A loop's body counts as often as the
    compiler's trip count says or, without one, the constant that its condition compares with: loops
    of ``lax.scan`` count up from 0. Other loops count once, and of a conditional all branches.
    """
    entry, computations = _parsed(text)
    total: Counter[str] = Counter()
    _add(total, computations, entry, 1)
    return dict(total)


def _add(total: Counter[str], computations: dict[str, _Computation], name: str, times: int) -> None:
    if name not in computations:
        return
    for kind, size in computations[name].bytes.items():
        total[kind] += times * size
    for called, count in computations[name].calls:
        if isinstance(count, str):
            limit = computations[count].limit if count in computations else []
            count = limit[0] if len(limit) == 1 else 1
        _add(total, computations, called, times * count)


def _parsed(text: str) -> tuple[str, dict[str, _Computation]]:
    computations: dict[str, _Computation] = {}
    entry, here = "", _Computation(Counter(), [], [])
    sizes: dict[str, int] = {}
    constants: dict[str, int] = {}
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            here = computations[head[2]] = _Computation(Counter(), [], [])
            sizes, constants = {}, {}
            entry = head[2] if head[1] else entry
        elif " = " in line:
            _read(line, here, sizes, constants)
    return entry, computations


def _read(line: str, here: _Computation, sizes: dict[str, int], constants: dict[str, int]) -> None:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    match = re.match(r"(\(.*?\)|\S+) ([a-z][\w\-]*)\((.*?)\)", rest)
    if match is None:
        return
    sizes[name.lstrip("%")] = _size(match[1])
    kind = match[2].removesuffix("-start")
    if kind in _COLLECTIVES:
        operands = sum(sizes.get(x, 0) for x in _names(match[3]))
        # The result of an asynchronous start is a tuple that holds the operands too.
        result = sizes[name.lstrip("%")] - (operands if match[2].endswith("-start") else 0)
        here.bytes[kind] += max(operands, result)
    constant = re.match(r"s32\[\]\S* constant\((\d+)\)", rest)
    if constant:
        constants[name.lstrip("%")] = int(constant[1])
    if line.strip().startswith("ROOT") and kind == "compare" and "direction=LT" in line:
        here.limit.extend(constants[x] for x in _names(match[3]) if x in constants)
    if kind == "while":
        trips, condition = _TRIPS.search(line), re.search(r"condition=%?([\w.\-]+)", line)
        times: int | str = int(trips[1]) if trips else condition[1] if condition else 1
        here.calls.extend((body, times) for body in re.findall(r"body=%?([\w.\-]+)", line))
    elif kind not in _COLLECTIVES:  # whose reductions are no calls
        here.calls.extend((called, 1) for called in _CALLED.findall(line))
        for group in _BRANCHES.findall(line):
            here.calls.extend((called, 1) for called in _names(group))


def _names(text: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", text)


def _size(shape: str) -> int:
    return sum(_one(kind, dims) for kind, dims in _SHAPE.findall(shape))


def _one(kind: str, dims: str) -> int:
    digits = re.search(r"\d+", kind)
    bits = _BITS.get(kind, int(digits[0]) if digits else 0)
    return math.prod(int(x) for x in dims.split(",") if x) * bits // 8
