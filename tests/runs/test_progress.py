"""What the terminal says while something runs."""

import re
import time

import pytest
from rich.console import Console

from ideal_jax.runs import progress
from ideal_jax.runs.influence_progress import InfluenceProgress
from ideal_jax.runs.pace import Pace, Steps
from ideal_jax.runs.progress import Reporter


def test_the_first_step_which_compiles_does_not_count():
    pace = Pace()
    pace.move(0.0, 0, 10)
    assert pace.left() is None
    pace.move(60.0, 1, 10)  # a minute of compilation
    assert pace.left() is None
    pace.move(62.0, 2, 10)
    assert pace.left() == pytest.approx(16.0)
    pace.move(70.0, 6, 10)
    assert pace.left() == pytest.approx(8.0)


def test_time_left_is_that_of_the_whole_phase():
    pace = Pace({"fit": 10.0, "solve": 30.0, "score": 60.0})
    pace.move(0.0, 0, 5, "fit")
    pace.move(40.0, 1, 5, "fit")
    pace.move(44.0, 5, 5, "fit")  # 8 units in 4 s
    assert pace.left() == pytest.approx(45.0)
    pace.move(44.0, 0, 3, "solve")
    assert pace.left() == pytest.approx(45.0)
    pace.move(99.0, 1, 3, "solve")  # compiled for 55 s
    assert pace.left() == pytest.approx(40.0)
    pace.move(109.0, 2, 3, "solve")  # 18 units in 14 s
    assert pace.left() == pytest.approx(70.0 * 14 / 18)
    pace.move(119.0, 3, 3, "solve")
    pace.move(119.0, 0, 1, "score")
    assert pace.left() == pytest.approx(60.0 * 24 / 28)
    pace.move(150.0, 1, 1, "score")
    assert pace.left() == 0


def test_a_part_that_is_taken_up_again_is_not_counted_twice():
    pace = Pace({"solve": 40.0, "score": 20.0})
    pace.move(0.0, 0, 20, "solve")
    pace.move(9.0, 1, 20, "solve")
    pace.move(18.0, 10, 20, "solve")  # 18 units in 9 s
    pace.move(18.0, 0, 1, "score")
    pace.move(30.0, 1, 1, "score")
    pace.move(30.0, 10, 20, "solve")
    assert pace.left() == pytest.approx(10.0)


def test_the_samples_of_a_part_are_added_up():
    steps = Steps({"reference gradients": 5})
    told = [(0, 2), (1, 2), (2, 2), (0, 3), (3, 3)]
    assert [steps.add("reference gradients", *one) for one in told] == [
        *((0, 5), (1, 5), (2, 5), (2, 5), (5, 5))
    ]
    assert steps.add("factors", 1, 4) == (1, 4)
    assert steps.add("factors", 4, 4) == (4, 4)
    assert steps.add("factors", 0, 4) == (4, 8)  # more than was expected


def test_influence_tells_one_count_and_the_seconds_of_its_phases(monkeypatch):
    reporter = reporter_of(monkeypatch, terminal=False, every=(0.2, 9.0))
    told = InfluenceProgress(reporter, "influence")
    with told as progress:
        progress.expect({"gradients": 1.0, "scores": 3.0}, {"gradients": 4})
        for done in (0, 1, 2, 0, 1, 2):
            progress("gradients", done, 2)
            time.sleep(0.01)
        progress("scores", 0, 9)
        time.sleep(0.3)
    lines = reporter.console.export_text().splitlines()
    assert lines[0] == "influence …"  # of no round, where there are no rounds
    assert re.fullmatch(r"influence: 0/9, scores, 1 s left, after .*", lines[1])
    seconds = told.seconds()
    assert list(seconds) == ["gradients", "scores"]
    assert 0.05 < seconds["gradients"] < seconds["scores"]


def test_a_step_of_several_programs_may_be_several_steps_of_the_first():
    pace = Pace(first=3)
    for done, seconds in ((0, 0.0), (1, 9.0), (2, 11.0), (3, 20.0)):
        pace.move(seconds, done, 9)
        assert pace.left() is None
    pace.move(21.0, 6, 9)
    assert pace.left() == pytest.approx(1.0)


def test_a_count_without_an_end_has_no_time_left():
    pace = Pace()
    for seconds in range(5):
        pace.move(float(seconds), 100 * seconds, None, "read")
        assert pace.left() is None


def test_a_log_hears_of_a_phase_that_is_still_compiling(monkeypatch):
    reporter = reporter_of(monkeypatch, terminal=False, every=(0.05, 0.4))
    with reporter.phase("round 0: train"):
        time.sleep(1.0)  # one long step: nobody calls advance
    lines = reporter.console.export_text().splitlines()
    assert lines[0] == "round 0: train …"
    assert 3 <= sum("after" in line for line in lines) <= 5  # at 0.05, 0.15, 0.35, 0.75
    assert re.fullmatch(r"round 0: train: done in \d+(\.\d+)? m?s", lines[-1])


def test_a_line_of_a_log_says_how_far_and_how_long(monkeypatch):
    reporter = reporter_of(monkeypatch, terminal=False, every=(0.2, 9.0))
    with reporter.phase("round 1: train") as advance:
        advance(8, 256, "loss 3.125")
        time.sleep(0.01)
        advance(16, 256, "loss 3.025")
        time.sleep(0.3)
    line = reporter.console.export_text().splitlines()[1]
    assert re.fullmatch(r"round 1: train: 16/256, loss 3\.025, \d+ s left, after \d+ ms", line), (
        line
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_cuts_no_count_and_joins_no_words(monkeypatch, width):
    reporter = reporter_of(monkeypatch, terminal=True, width=width)
    with reporter.phase("round 10: influence", {"training scores": 1.0}) as advance:
        advance(0, 15, "training scores")
        advance(1, 15, "training scores")
        time.sleep(0.01)
        advance(2, 15, "training scores")
        time.sleep(0.2)
    last = reporter.console.export_text().removesuffix("\n")[-width:]
    assert last.startswith("round 10: influence ")
    assert " 2/15 " in last
    assert "…" not in last
    assert last.rstrip().endswith("training scores") == (width >= 80)


def test_what_is_told_is_not_wrapped_in_the_middle(monkeypatch):
    reporter = reporter_of(monkeypatch, terminal=True, width=40)
    told = "influence cost 31.0% of the FLOPs of the round's training; 200 examples scored"
    reporter.say(told)
    assert reporter.console.export_text() == told + "\n"


def test_no_progress_where_none_is_wanted(monkeypatch):
    reporter = reporter_of(monkeypatch, terminal=True, enabled=False)
    with reporter.phase("data") as advance:
        advance(1, 2)
    assert reporter.console.export_text() == ""
    assert reporter.seconds["data"] > 0


def reporter_of(monkeypatch, *, terminal, width=100, enabled=True, **options):
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: terminal)
    reporter = Reporter(enabled, **options)
    reporter.console = Console(highlight=False, record=True, width=width, force_terminal=terminal)
    return reporter
