"""What one round changed for each capability against the given mixture, and how sure that is."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ideal_jax.mixture import half_width
from ideal_jax.report import formats

BETTER, WORSE, EQUAL = "better", "worse", "equal within error"


class Change(NamedTuple):
    """One capability; what is unknown is NaN.

    Attributes:
      name: the capability.
      difference, stderr: of the reference loss, paired by example, in nats per token.
      verdict: ``BETTER``, ``WORSE`` or ``EQUAL``, by the error of the difference.
      scores: on the test set, with the given mixture and in this round.
      score_difference, score_stderr: of the two scores, taken as independent.
      score_verdict: as ``verdict``; a higher score is better. Information: it decides nothing.
    """

    name: str
    difference: float
    stderr: float
    verdict: str
    scores: tuple[float, float]
    score_difference: float
    score_stderr: float
    score_verdict: str


def capability_changes(results: Mapping[str, Any], number: int) -> list[Change]:
    """Every capability of a round against the given mixture's; empty where nothing is recorded.

    Args:
      results: the content of ``results.json``.
      number: of the round.
    """
    round_ = entry(results, number)
    against = round_.get("against_given") if round_ else None
    if not round_ or not against:
        return []
    given, confidence = results["rounds"][0], level(results)
    before, after = given.get("scores") or {}, round_.get("scores") or {}
    changes = []
    for name, apart in against["capabilities"].items():
        d, e = apart["difference"], apart["stderr"]
        scores = tuple(one.get(name, {}).get("value", math.nan) for one in (before, after))
        errors = [one.get(name, {}).get("stderr") for one in (before, after)]
        error = math.hypot(*(math.nan if x is None else x for x in errors))
        gain = scores[1] - scores[0]
        score_verdict = verdict(-gain, error, confidence)
        changes.append(
            Change(name, d, e, verdict(d, e, confidence), scores, gain, error, score_verdict)
        )
    return changes


def verdict(difference: float, stderr: float, confidence: float) -> str:
    """Of a difference that is better when it is lower."""
    if not abs(difference) > half_width(stderr, confidence):
        return EQUAL
    return WORSE if difference > 0 else BETTER


def worse(changes: list[Change]) -> str:
    """The capabilities whose reference loss got worse, by name; "" if there are none."""
    return ", ".join(
        f"{change.name} ({signed(change.difference, change.stderr)})"
        for change in changes
        if change.verdict == WORSE
    )


def lower_scores(changes: list[Change], percent: bool) -> str:
    """The capabilities whose test score fell by more than its error, by name; "" if none did."""
    return ", ".join(
        f"{change.name} ({points(change.score_difference, change.score_stderr, percent)})"
        for change in changes
        if change.score_verdict == WORSE
    )


def signed(difference: float, stderr: float) -> str:
    """A difference in loss with its error, to the digits that the error supports."""
    decimals = formats.decimals_for(stderr, 4)
    text = formats.fixed(difference, decimals, signed=True)
    return f"{text} ± {formats.fixed(stderr, decimals)}" if formats.finite(stderr) else text


def points(difference: float, stderr: float, percent: bool) -> str:
    """A difference of two scores with its error; of fractions in percentage points."""
    if not percent or not formats.finite(difference):
        return signed(difference, stderr)
    told = formats.fixed(100 * difference, 1, signed=True)
    return f"{told} ± {formats.fixed(100 * stderr, 1)} points"


def entry(results: Mapping[str, Any], number: int) -> dict[str, Any] | None:
    """What ``results.json`` holds of a round."""
    found = [round_ for round_ in results.get("rounds") or [] if round_["round"] == number]
    return found[0] if found else None


def level(results: Mapping[str, Any]) -> float:
    """The confidence at which the run judges differences."""
    return results.get("confidence") or 0.95


def made(beta: float, before: float, after: float) -> str:
    """What bounds, rescaling and rounding left of a proposed change β; "" where that is β."""
    told = formats.percent(after / before - 1, signed=True) if before else formats.MISSING
    return "" if told == formats.percent(beta, signed=True) else told
