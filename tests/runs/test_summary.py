"""What a run ends with on the terminal, and the sentence that says why a round is chosen."""

import numpy as np
import pytest

from ideal_jax.mixture import Choice, ExampleLosses
from ideal_jax.runs.results import reason
from ideal_jax.runs.summary import print_summary


def losses(*nats):
    return [ExampleLosses(np.asarray(nats, float), np.ones(len(nats)))]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(0, 0, (0,)), "lowest, beyond the error of every difference (95 %, paired); read"),
        (Choice(2, 2, (2,)), "lowest, beyond the error of every difference (95 %, paired); read"),
        (Choice(0, 0, (0, 2)), "lowest; round 2 is equal within error (95 %, paired); read"),
        (
            Choice(1, 1, (1, 2)),
            "round 2 is equal within error (95 %, paired) but no nearer to the given mixture",
        ),
        (
            Choice(0, 2, (0, 1, 2)),
            "and the lowest, of round 2, are equal within error (+0.5000 ± 0.5000 nats per token; "
            "95 %, paired), and it is the given mixture; read",
        ),
        (Choice(1, 2, (1, 2)), "are equal within error (+0.2500 ± 0.2500 nats"),
    ],
)
def test_the_reason_is_a_sentence(choice, words):
    rounds = [losses(1, 2), losses(1, 1.5), losses(1, 1)]
    text = reason(choice, rounds, (1.0,), 0.95)
    assert text.startswith("its reference loss ")
    assert words in text
    assert reason(Choice(0, 0, (0,)), rounds[:1], (1.0,), 0.95) == "it is the only one"


def entry(number, counts, beta, difference, stderr, capabilities, scores):
    names = ("math", "a longer name")
    return {
        "round": number,
        "mixture": dict(zip(names, counts, strict=True)),
        "beta": dict(zip(names, beta, strict=True)),
        "overall": 0.5,
        "overall_stderr": 0.02,
        "scores": {
            name: {"value": x, "stderr": 0.02} for name, x in zip(names, scores, strict=True) if x
        },
        "selection_loss": 1.0 + difference,
        "test_loss": dict.fromkeys(names, 1.0),
        "against_given": {
            "difference": difference,
            "stderr": stderr,
            "capabilities": {
                name: {"difference": d, "stderr": e}
                for name, (d, e) in zip(names, capabilities, strict=True)
            },
        },
    }


def printed(capsys, monkeypatch, tmp_path, best, **second):
    monkeypatch.setenv("COLUMNS", "80")
    results = {
        "rounds": [
            entry(0, (3, 997), (0, 0), 0.0, 0.0, [(0.0, 0.0)] * 2, (0.61, None)),
            entry(1, **second),
        ],
        "best_round": best,
        "best_round_reason": "its reference loss is what it is",
        "confidence": 0.95,
    }
    print_summary(results, (0.5, 0.5), tmp_path / "report.html")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines()[:-1])) <= 80
    return " ".join(said.replace("│", " ").split())


ROUND = {
    "counts": (3, 1147),
    "beta": (0.15, 0.15),
    "difference": -0.054,
    "stderr": 0.012,
    "capabilities": [(-0.14, 0.02), (0.031, 0.011)],
    "scores": (0.47, None),
}


def test_a_chosen_round_names_what_got_worse(capsys, monkeypatch, tmp_path):
    said = printed(capsys, monkeypatch, tmp_path, 1, **ROUND)
    assert "1 * 0.9460 −0.054 ± 0.012" in said
    assert "math −0.140 ± 0.020 better −14.0 ± 2.8 points" in said
    assert "a longer name +0.031 ± 0.011 worse –" in said
    assert "beyond the 95 % error: a longer name (+0.031 ± 0.011)" in said
    assert "lower exact match, beyond the 95 % error: math (−14.0 ± 2.8 points)" in said
    assert "* round 1 is chosen: its reference loss is what it is" in said
    # 15 % of 3 examples is none; of 997 it is 150 but for the rounding.
    assert "β +15.0%, made 0.0%" in said
    assert said.count("made") == 2  # with the line that explains it


def test_a_chosen_round_without_losers_says_none(capsys, monkeypatch, tmp_path):
    how = ROUND | {"capabilities": [(-0.14, 0.02), (0.02, 0.011)], "scores": (0.6, None)}
    said = printed(capsys, monkeypatch, tmp_path, 1, **how)
    assert "a longer name +0.020 ± 0.011 equal within error" in said
    assert "beyond the 95 % error: none" in said
    assert "lower exact match" not in said


def test_a_kept_mixture_has_no_losers(capsys, monkeypatch, tmp_path):
    said = printed(capsys, monkeypatch, tmp_path, 0, **ROUND)
    assert "0 * 1.0000" in said
    assert "1 0.9460 −0.054 ± 0.012" in said
    assert "worse than" not in said
