"""The top of the page: which round, which mixture, what it is worth, and how sure that is."""

import math
from typing import Any

from ideal_jax.report import changes, formats, rounds, scores
from ideal_jax.report.load import Round, Run


def answer(run: Run) -> dict[str, Any]:
    """The headline, its numbers, and the chosen mixture beside the given one.

    While nothing is chosen, the latest evaluated round stands in for the chosen one.
    """
    if not run.rounds:
        headline = "No round has started yet"
        if run.measured:
            model = run.measured[0]["model"] or "the model"
            headline = f"What more of each domain would do to {model}"
        return {"headline": headline, "reason": "", "rows": []}
    chosen = rounds.best(run)
    given = run.rounds[0]
    evaluated = [round_ for round_ in run.rounds if round_.evaluation]
    if chosen is not None:
        shown = next(round_ for round_ in run.rounds if round_.number == chosen)
    else:
        shown = evaluated[-1] if evaluated else run.rounds[-1]
    same = shown.number == given.number
    return {
        "headline": _headline(run, chosen, same),
        "reason": (run.results or {}).get("best_round_reason") or "",
        "chosen": chosen is not None,
        "same": same,
        "shown": shown.number,
        "loss": _loss(run, given, shown),
        "overall": _overall(run, given, shown),
        "changes": _changes(run, shown.number),
        "level": _level(run),
        "budget": _budget(given, shown),
        "rows": _rows(run, given, shown),
    }


def _headline(run: Run, chosen: int | None, same: bool) -> str:
    if chosen is None:
        return "No mixture is chosen yet"
    if not rounds.finished(run):
        return f"Best so far: the {'given mixture' if same else f'mixture of round {chosen}'}"
    if not same:
        return f"Train on the mixture of round {chosen}"
    lowest = rounds.lowest(run)
    if lowest in (None, chosen):
        return "Keep the given mixture: no other round was better"
    return f"Keep the given mixture: round {lowest} is equal within error"


def _loss(run: Run, given: Round, shown: Round) -> dict[str, str]:
    before, after = rounds.selection_loss(run, given), rounds.selection_loss(run, shown)
    against = (changes.entry(run.results or {}, shown.number) or {}).get("against_given")
    change = ""
    if against:
        change = changes.signed(against["difference"], against["stderr"])
        if _verdict(run, against) == changes.EQUAL:
            change += f", {changes.EQUAL}"
    return {
        "given": formats.fixed(before, 4),
        "shown": formats.fixed(after, 4),
        "change": change,
    }


def _overall(run: Run, given: Round, shown: Round) -> dict[str, str]:
    percent = scores.are_fractions(run)
    return {
        "given": scores.overall(given, percent),
        "shown": scores.overall(shown, percent),
        "change": _score_change(run, given, shown),
    }


def _score_change(run: Run, given: Round, shown: Round) -> str:
    """The difference in overall score; the two are taken as independent."""
    if not (given.evaluation and shown.evaluation):
        return ""
    values = [round_.evaluation["overall"] for round_ in (given, shown) if round_.evaluation]
    errors = [round_.evaluation["overall_stderr"] for round_ in (given, shown) if round_.evaluation]
    if not all(formats.finite(x) for x in values + errors):
        return ""
    difference, error = values[1] - values[0], math.hypot(*errors)
    told = changes.points(difference, error, scores.are_fractions(run))
    same = changes.verdict(difference, error, changes.level(run.results or {})) == changes.EQUAL
    return f"{told}, {changes.EQUAL}" if same else told


def _changes(run: Run, shown: int) -> dict[str, Any] | None:
    """The round shown against the given mixture; where that is the same, the lowest round."""
    first = run.rounds[0].number
    number = shown if shown != first else rounds.lowest(run)
    if number in (None, first) or number not in [round_.number for round_ in run.rounds]:
        return None
    found = changes.capability_changes(run.results or {}, number)
    if not found:
        return None
    percent = scores.are_fractions(run)
    against = (changes.entry(run.results or {}, number) or {})["against_given"]
    given, other = run.rounds[0], next(r for r in run.rounds if r.number == number)
    overall = _verdict(run, against)
    return {
        "number": number,
        "of_shown": number == shown,
        "level": _level(run),
        "worse": changes.worse(found),
        "lower": changes.lower_scores(found, percent),
        "rows": [_row(change, percent) for change in found],
        "overall": {
            "difference": changes.signed(against["difference"], against["stderr"]),
            "verdict": overall,
            "kind": overall.split()[0],
            "scores": f"{scores.overall(given, percent)} → {scores.overall(other, percent)}",
            "points": _score_change(run, given, other),
        },
    }


def _row(change: changes.Change, percent: bool) -> dict[str, str]:
    known = formats.finite(change.score_difference)
    before, after = (formats.score(x, None, percent) for x in change.scores)
    told = changes.points(change.score_difference, change.score_stderr, percent)
    return {
        "name": change.name,
        "difference": changes.signed(change.difference, change.stderr),
        "verdict": change.verdict,
        "kind": change.verdict.split()[0],
        "scores": f"{before} → {after}" if known else formats.MISSING,
        "points": told if known else "",
    }


def _verdict(run: Run, against: dict[str, Any]) -> str:
    return changes.verdict(
        against["difference"], against["stderr"], changes.level(run.results or {})
    )


def _level(run: Run) -> str:
    return f"{100 * changes.level(run.results or {}):g} %"


def _budget(given: Round, shown: Round) -> dict[str, str]:
    def total(round_: Round, key: str) -> str:
        return formats.count(sum(domain[key] for domain in round_.mixture["domains"]))

    return {
        "given": total(given, "count"),
        "shown": total(shown, "count"),
        "tokens": total(shown, "tokens"),
    }


def _rows(run: Run, given: Round, shown: Round) -> list[dict[str, str]]:
    """Each domain's share, given and chosen."""
    before, after = rounds.shares(given), rounds.shares(shown)
    examples = [rounds.counts(given), rounds.counts(shown)]
    widest = max((x for x in [*before.values(), *after.values()] if x > 0), default=1.0)
    rows = []
    for name in rounds.domains(run):
        a, b = before.get(name), after.get(name)
        change = b - a if a is not None and b is not None else None
        points = formats.fixed(100 * change, 1, signed=True) if change is not None else ""
        rows.append(
            {
                "name": name,
                "given": formats.percent(a),
                "shown": formats.percent(b),
                "change": points or formats.MISSING,
                "given_count": formats.count(examples[0].get(name)),
                "shown_count": formats.count(examples[1].get(name)),
                "given_width": _width(a, widest),
                "shown_width": _width(b, widest),
            }
        )
    return rows


def _width(share: float | None, widest: float) -> str:
    return f"{100 * share / widest:.1f}%" if share is not None and share > 0 else "0%"
