"""The page from the files: contents, odd shapes, unfinished runs, hostile text, errors."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import change, write, write_run

from ideal_jax.errors import UserError
from ideal_jax.report import write_report


class Visible(HTMLParser):
    """Elements, attributes and text of a page, and whether its tags are balanced."""

    VOID = ("meta", "link", "br", "use")

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def read(workdir: Path) -> Visible:
    """The page of a work directory; its tags are balanced, its ids unique, nothing is foreign."""
    source = write_report(workdir).read_text(encoding="utf-8")
    page = Visible()
    page.feed(source)
    page.close()
    assert page.stack == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(#|href="#)([^)"]+)', source)
    assert set(references) <= set(ids)
    for tag, attrs in page.tags:
        assert tag not in ("script", "iframe", "img", "object", "embed", "base", "form")
        for key, value in attrs.items():
            assert not key.startswith("on")
            if key in ("src", "href", "action"):
                assert value.startswith("#") or value == "data:,"
    style = re.search("<style>(.*?)</style>", source, re.S)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    return page


def test_answer_comes_first_and_sections_follow_in_order(tmp_path):
    page = read(write_run(tmp_path))
    text = page.text
    headline = "Train on the mixture of round 2"
    parts = [
        headline,
        "lowest reference loss of 3 rounds",
        "Got worse: the reference loss of trust (+0.042 ± 0.014) is higher",
        "1.3303",
        "given mixture: 1.4123",
        "difference: −0.082 ± 0.016",
        "Every decision on this page reads reference data only",
        "The mixture of each round",
        "What a little more of each domain would do",
        "What each round’s model can do",
        "How training went",
        "Time and computation",
        "What the model writes",
        "How to do it again",
    ]
    places = [text.index(part, text.index(headline)) for part in parts]
    assert places == sorted(places)
    assert "not finished" not in text


def test_numbers_of_the_files_are_on_the_page(tmp_path):
    text = read(write_run(tmp_path)).text
    evaluation = json.loads((tmp_path / "rounds/01/evaluation.json").read_text())
    assert f"{100 * evaluation['tasks'][0]['value']:.1f}% ± 2.2%" in text
    assert f"{evaluation['reference_loss']['code']['nats_per_token']:.3f} ± 0.013" in text
    mixture = json.loads((tmp_path / "rounds/02/mixture.json").read_text())
    for domain in mixture["domains"]:
        assert f"{domain['tokens']:,}" in text
    influence = json.loads((tmp_path / "rounds/00/influence.json").read_text())
    assert f"{influence['alpha'][0]:+.4f}".replace("-", "−") in text
    assert "Common mode83%" in text
    assert "3 of 5 signs of α are known" in text
    assert "Damping λ0.00042" in text
    assert "6 min 53 s" in text
    assert "3.10 PFLOP" in text
    assert "took 40.9% of the computation of training" in text
    assert "ideal-jax run --config=configs/quickstart.py" in text
    assert '"jax"' not in text
    assert "0.10.2" in text


def test_the_speed_of_training_is_told_with_its_formula(tmp_path):
    text = read(write_run(tmp_path)).text
    assert "0 (given)500 ms65,53661,23420,11143.2%60.00 GiB21.0 s" in text
    assert "In the last round 1.71 PFLOP / (520 ms × 7.91 PFLOP/s) = 43.2%, on 8 × NVIDIA" in text
    assert "0 (given)3 min 20 s75.0%10.5%1.0%6.0%1.5%4.0% (16 steps)2.0%" in text
    for k in range(3):
        change(tmp_path / f"rounds/0{k}/speed.json", device="cpu", mfu=None, peak_bytes=None)
    text = read(tmp_path).text
    assert "65,53661,23420,111––21.0 s" in text
    assert "8 × cpu has no peak in the table of chips, so there is no MFU" in text
    for k in range(3):
        (tmp_path / f"rounds/0{k}/speed.json").unlink()
    assert "Speed of training" not in read(tmp_path).text


def test_what_was_scored_and_which_examples_matter_are_on_the_page(tmp_path):
    text = read(write_run(tmp_path)).text
    assert "training examples scored; the sign of every α is known" in text
    assert "Cost18.3%" in text
    assert "Important layers71.0%" in text
    assert "α, 95% by bootstrap" in text
    assert "The examples that help and hurt most" in text
    assert "What is 2 + 2? <b>&" in text


def test_effects_that_may_be_zero_are_faint_and_say_so(tmp_path):
    write_run(tmp_path, domains=("a", "b"))
    change(
        tmp_path / "rounds/00/influence.json",
        matrix=[[-0.030, 0.019], [0.021, 0.001]],
        stderr=[[0.010, 0.010], [0.010, 0.010]],
    )
    shutil.rmtree(tmp_path / "rounds/01")
    page = read(tmp_path)
    kinds = [attrs["class"] for tag, attrs in page.tags if tag == "td" and "--heat" in str(attrs)]
    assert kinds[:4] == ["better", "unclear", "worse", "unclear"]
    assert "more of a is predicted to lower the loss on a, the largest" in page.text
    assert "2 of 4 effects are clearly different from zero" in page.text
    assert page.text.count("may be zero") >= 2


def test_same_files_same_bytes(tmp_path):
    first = write_report(write_run(tmp_path / "a")).read_bytes()
    assert write_report(tmp_path / "a").read_bytes() == first
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere")
    assert write_report(tmp_path / "elsewhere").read_bytes() == first
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "config.json",
        "report.html",
        "results.json",
        "rounds",
    }


def test_the_users_matplotlib_settings_do_not_matter(tmp_path):
    import matplotlib

    first = write_report(write_run(tmp_path)).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
        assert write_report(tmp_path).read_bytes() == first


@pytest.mark.parametrize(
    ("n", "R", "updates"), [(2, 1, 1), (2, 5, 2), (15, 3, 6), (7, 15, 1), (3, 4, 3)]
)
def test_any_shape(tmp_path, n, R, updates):
    domains = [f"domain with a long name {j}" for j in range(n)]
    references = [f"capability_{i}" for i in range(R)]
    page = read(write_run(tmp_path, domains, references, updates, best=1))
    cells = [attrs for tag, attrs in page.tags if tag == "td" and "--heat" in str(attrs)]
    assert len(cells) == updates * (R + 1) * n
    charts = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(charts) == 4 + updates + (updates + 1)
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    scopes = [attrs.get("scope") for tag, attrs in page.tags if tag == "th"]
    assert set(scopes) == {"row", "col"}


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e7, 0.0])
def test_any_magnitude_of_influence(tmp_path, scale):
    text = read(write_run(tmp_path, scale=scale)).text
    assert ("all multiplied by 10" in text) == (scale in (1e-9, 1e7))


def test_the_given_mixture_may_win(tmp_path):
    write_run(tmp_path, best=0)
    change(tmp_path / "results.json", lowest_round=0)
    text = read(tmp_path).text
    assert "Keep the given mixture: no other round was better" in text
    assert "of the given round: how much" in text
    assert "given mixture: 1.4123" not in text


def test_a_given_mixture_that_is_as_good_is_kept_and_the_other_is_shown_beside_it(tmp_path):
    text = read(write_run(tmp_path, best=0)).text
    assert "Keep the given mixture: no other round was better" not in text
    assert "Keep the given mixture: round 2 is equal within error" in text
    assert "Round 2, whose reference loss is the lowest, against the given mixture" in text
    assert "Got worse" not in text  # nothing does that keeps what it has
    assert "instr−0.008 ± 0.014equal within error" in text


def test_what_got_worse_stands_before_the_numbers(tmp_path):
    write_run(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for round_, score in zip(results["rounds"], (0.61, 0.6, 0.47), strict=True):
        for name in round_["scores"]:
            round_["scores"][name] = {"value": score if name == "code" else 0.5, "stderr": 0.022}
    write(tmp_path / "results.json", results)
    text = read(tmp_path).text
    told = "Lower test score: code (−14.0 ± 3.1 points), by more than the error"
    assert text.index("Why:") < text.index("Got worse: the reference loss of trust")
    assert text.index(told) < text.index("Overall test score")
    assert "math−0.120 ± 0.014better50.0% → 50.0%0.0 ± 3.1 points" in text
    for capability in results["rounds"][2]["against_given"]["capabilities"].values():
        capability["difference"] = -0.001
    results["confidence"] = 0.9
    write(tmp_path / "results.json", results)
    text = read(tmp_path).text
    assert "No capability’s reference loss got worse by more than its 90 % error" in text
    assert "Lower test score: code" in text


def test_a_difference_within_its_error_says_so(tmp_path):
    write_run(tmp_path, best=1)
    results = json.loads((tmp_path / "results.json").read_text())
    results["rounds"][1]["against_given"] |= {"difference": -0.0054, "stderr": 0.0081}
    write(tmp_path / "results.json", results)
    change(tmp_path / "rounds/01/evaluation.json", overall=0.5)
    change(tmp_path / "rounds/00/evaluation.json", overall=0.49)
    text = read(tmp_path).text
    assert "difference: −0.0054 ± 0.0081, equal within error" in text
    assert "difference: +1.0 ± 1.4 points, equal within error" in text


def test_a_change_of_the_mixture_that_bounds_cut_is_shown_beside_beta(tmp_path):
    write_run(tmp_path, domains=("a", "b", "c"), updates=1, best=1)
    counts = [(1000, 500, 80), (1150, 500, 80)]
    for k, (number, betas) in enumerate(((0, (0, 0, 0)), (1, (0.15, -0.003, 0.4)))):
        rows = [
            {"name": n, "available": 10, "beta": b, "count": count, "tokens": 1}
            for n, b, count in zip("abc", betas, counts[k], strict=True)
        ]
        change(tmp_path / f"rounds/0{number}/mixture.json", domains=rows)
    text = read(tmp_path).text
    assert "+15.0%115.00×" in text  # as proposed: nothing beside it
    assert "−0.3%0.0%50.00×" in text  # less than one example
    assert "+40.0%0.0%8.00×" in text  # the cap


def test_unfinished_run_says_how_far_it_is(tmp_path):
    write_run(tmp_path)
    last = tmp_path / "rounds/02"
    (last / "evaluation.json").unlink()
    (tmp_path / "rounds/01/influence.json").unlink()
    lines = (last / "metrics.jsonl").read_text().splitlines()
    # A step logged again after a resume, and a line cut short by a kill.
    again = lines[:120] + lines[100:110] + ['{"step": 111, "lo']
    (last / "metrics.jsonl").write_text("\n".join(again))
    change(tmp_path / "results.json", status="running", best_round=None, best_round_reason=None)
    text = read(tmp_path).text
    assert "This run is not finished." in text
    assert "No mixture is chosen yet" in text
    assert "step 120 of 300" in text
    assert "1 unreadable line of the logs left out" in text
    (tmp_path / "results.json").unlink()
    assert "No cost has been recorded yet" in read(tmp_path).text


def test_a_run_that_has_only_begun(tmp_path):
    write_run(tmp_path)
    (tmp_path / "results.json").unlink()
    for name in ("01", "02"):
        shutil.rmtree(tmp_path / "rounds" / name)
    for name in ("evaluation.json", "influence.json", "metrics.jsonl"):
        (tmp_path / "rounds/00" / name).unlink()
    text = read(tmp_path).text
    assert "no step logged yet" in text
    assert "No influence has been measured yet" in text
    shutil.rmtree(tmp_path / "rounds")
    assert "No round has started yet" in read(tmp_path).text


def test_only_what_the_design_promises(tmp_path):
    """Files with no key beyond the documented ones, and numbers that are missing or no numbers."""
    write_run(tmp_path)
    path = tmp_path / "rounds/00/influence.json"
    influence = json.loads(path.read_text())
    for key in ("stderr_train", "stderr_reference", "reference_shares", "decision"):
        del influence[key]
    influence["damping"] = 0.25
    influence["matrix"][0][0] = None
    influence["stderr"][0][1] = None
    influence["alpha"][0] = float("nan")
    write(path, influence)
    path = tmp_path / "rounds/01/evaluation.json"
    evaluation = json.loads(path.read_text())
    for key in ("overall_stderr", "selection_loss", "test_loss_mean", "samples", "test_loss"):
        del evaluation[key]
    evaluation["tasks"][0]["value"] = None
    evaluation["reference_loss"]["code"]["nats_per_token"] = float("inf")
    write(path, evaluation)
    log = tmp_path / "rounds/01/metrics.jsonl"
    log.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0}\n')
    results = json.loads((tmp_path / "results.json").read_text())
    del results["phases"]
    write(tmp_path / "results.json", results)
    text = read(tmp_path).text
    assert "not finite" in text
    assert "Damping λ0.25" in text


HOSTILE = "<script>alert(1)</script>\"'&lt;--> {{ 7*7 }} $\\frac{ \ud800 \x00 漢字 \u202e]]></pre>"


def test_text_of_the_files_is_text_on_the_page(tmp_path):
    domains = [HOSTILE, "<b>bold</b>", "</style><img src=x onerror=alert(1)>"]
    write_run(tmp_path, domains, text=HOSTILE)
    change(tmp_path / "results.json", best_round_reason=HOSTILE)
    change(
        tmp_path / "config.json",
        command=HOSTILE,
        config={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        devices={"x": [HOSTILE]},
    )
    change(tmp_path / "rounds/00/influence.json", layers=[HOSTILE, 3], estimator=HOSTILE)
    page = read(tmp_path)
    assert "b" not in [tag for tag, _ in page.tags if tag != "b"]
    assert "<script>alert(1)</script>" in page.text
    assert "<b>bold</b>" in page.text
    assert "{{ 7*7 }}" in page.text


def test_long_generations_are_cut(tmp_path):
    text = read(write_run(tmp_path, text="x" * 9000)).text
    assert "more characters)" in text
    assert "x" * 4001 not in text


def one_line(workdir: Path) -> str:
    with pytest.raises(UserError) as caught:
        write_report(workdir)
    message = str(caught.value)
    assert "\n" not in message
    assert not (workdir / "report.html").exists()
    return message


def test_missing_or_foreign_folder(tmp_path):
    assert "nowhere: no such folder" in one_line(tmp_path / "nowhere")
    assert "not a work directory" in one_line(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    assert "config.json: not written by ideal-jax" in one_line(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json: cannot be read" in one_line(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("rounds/00/mixture.json", {"domains": 3}, "domains should be a list, found 3"),
        ("rounds/00/mixture.json", {"domains": [{"name": "a"}]}, ": domains[0] has no 'available'"),
        ("rounds/00/influence.json", {"matrix": [[1.0]]}, "'matrix' does not fit 5 references"),
        ("rounds/00/influence.json", {"alpha": ["x"] * 5}, ": alpha[0] should be a number"),
        ("rounds/01/evaluation.json", {"overall": True}, ": overall should be a number"),
        ("results.json", {"best_round": 1.5}, ": best_round should be a whole number"),
        ("config.json", {"command": ["a"]}, ": command should be a text"),
        ("results.json", {"status": 1}, ": status should be a text"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, values, words):
    write_run(tmp_path)
    change(tmp_path / name, **values)
    message = one_line(tmp_path)
    assert str(tmp_path / name) in message
    assert words in message


def test_an_old_page_survives_an_error(tmp_path):
    before = write_report(write_run(tmp_path)).read_bytes()
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("residual", "words"),
    [(0.09, None), (0.34, "left more than 0.1 of their right-hand side, at most 0.34"),
     (4.2, "a solve failed (residual 4.2")],
)  # fmt: skip
def test_rough_and_failed_solves_are_told_beside_the_decision(tmp_path, residual, words):
    workdir = write_run(tmp_path)
    change(workdir / "rounds/00/influence.json", solve_residual=[1e-3] * 4 + [residual])
    write_report(workdir)
    page = (workdir / "report.html").read_text()
    assert (words is not None) == ("warning: " in page)
    assert words is None or words in page
