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
      bytes: of collectives, by kind and channel ("" if they have none).
      calls: (computation, times; or the condition of the loop whose body it is).
      limit: if this is the condition of a counting loop: which of the loop's values is compared,
        and with what number.
      steps: if this is the body of a loop: what it adds to each of the loop's values; 1 if unknown.
    """

    bytes: Counter[tuple[str, str]]
    calls: list[tuple[str, int | str]]
    limit: list[tuple[int, int]]
    steps: list[int]


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes of collective operations on one device, by kind.

    The larger of an operation's operands and results counts; of several on one channel the one that
    runs least, for the others are steps in which it goes on beside other work. A loop's body counts
    as often as the compiler's trip count says or, without one, as its condition and its step allow
    if it counts up from 0. Other loops count once, and of a conditional all branches.
    """
    entry, computations = _parsed(text)
    found: dict[tuple[str, str], int] = {}
    _add(found, computations, entry, 1)
    total: Counter[str] = Counter()
    for (kind, _), size in found.items():
        total[kind] += size
    return dict(total)


def _add(
    found: dict[tuple[str, str], int],
    computations: dict[str, _Computation],
    name: str,
    times: int,
) -> None:
    if name not in computations:
        return
    for (kind, channel), size in computations[name].bytes.items():
        before = found.get((kind, channel))
        if before is None or not channel:
            found[kind, channel] = (before or 0) + times * size
        else:
            found[kind, channel] = min(before, times * size)
    for called, count in computations[name].calls:
        turns = _turns(computations, called, count) if isinstance(count, str) else count
        _add(found, computations, called, times * turns)


def _turns(computations: dict[str, _Computation], body: str, condition: str) -> int:
    """Of a loop that counts up from 0."""
    limit = computations[condition].limit if condition in computations else []
    if len(limit) != 1 or body not in computations:
        return 1
    (value, number), steps = limit[0], computations[body].steps
    return -(-number // (steps[value] if value < len(steps) else 1))


def _parsed(text: str) -> tuple[str, dict[str, _Computation]]:
    computations: dict[str, _Computation] = {}
    entry, here = "", _Computation(Counter(), [], [], [])
    sizes: dict[str, int] = {}
    numbers: dict[str, tuple[str, int]] = {}
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            here = computations[head[2]] = _Computation(Counter(), [], [], [])
            sizes, numbers = {}, {}
            entry = head[2] if head[1] else entry
        elif " = " in line:
            _read(line, here, sizes, numbers)
    return entry, computations


def _read(
    line: str, here: _Computation, sizes: dict[str, int], numbers: dict[str, tuple[str, int]]
) -> None:
    """One instruction; ``numbers`` has the constants, the values of a loop by their place, and what
    is added to them."""
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    match = re.match(r"(\(.*?\)|\S+) ([a-z][\w\-]*)\((.*?)\)", rest)
    if match is None:
        return
    name, operands = name.lstrip("%"), _names(match[3])
    sizes[name] = _size(match[1])
    kind = match[2].removesuffix("-start")
    if kind in _COLLECTIVES:
        given = sum(sizes.get(x, 0) for x in operands)
        # The result of an asynchronous start is a tuple that holds the operands too.
        result = sizes[name] - (given if match[2].endswith("-start") else 0)
        channel = re.search(r"channel_id=(\d+)", line)
        here.bytes[kind, channel[1] if channel else ""] += max(given, result)
    if re.match(r"[su]32\[\]", rest):
        place = re.search(r"index=(\d+)", rest) if kind == "get-tuple-element" else None
        known = [numbers[x] for x in operands if x in numbers]
        if kind == "constant" and match[3].isdecimal():
            numbers[name] = "constant", int(match[3])
        elif place:
            numbers[name] = "value", int(place[1])
        elif kind == "copy" and known:
            numbers[name] = known[0]
        elif kind == "add" and sorted(role for role, _ in known) == ["constant", "value"]:
            numbers[name] = "step", dict(known)["constant"]
    if line.strip().startswith("ROOT"):
        known = [numbers.get(x, ("", 1)) for x in operands]
        if kind == "compare" and "direction=LT" in line:
            if [role for role, _ in known] == ["value", "constant"]:
                here.limit.append((known[0][1], known[1][1]))
        elif kind == "tuple":
            here.steps.extend(number if role == "step" else 1 for role, number in known)
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
