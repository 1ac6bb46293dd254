"""The verb ``data``: what it finds, what it refuses, what it leaves."""

import io
import json
import re

import pytest
from rich.console import Console

from ideal_jax import cli
from ideal_jax.data import prepare
from ideal_jax.data.tokenizers import byte_tokenizer
from ideal_jax.runs.data_examples import print_examples
from ideal_jax.runs.data_tables import sparkline
from ideal_jax.runs.session import data_section
from ideal_jax.runs.train_run import training

LEAK = "which seven words of this question were copied from a benchmark by mistake today"
HELD_OUT = "a prompt of the reference set that is long enough to be told from every other one"


def lines(texts):
    return "".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in texts)


@pytest.fixture
def root(tmp_path):
    train = [(f"count from {i} to {3 * i} and say what you find there", f"{i}") for i in range(30)]
    train += [("Answer quickly: " + LEAK.upper(), "none"), ("no", "no")]
    train += [("please: " + HELD_OUT, "yes"), ("no", "no"), ("tell [b]me[/b]", "so")]
    for name, texts in (("a", train), ("b", train[:30])):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "train.jsonl").write_text(lines(texts))
        reference = [(HELD_OUT, "y"), ("is it", "y"), ("was it", "y"), ("will it", "y")]
        (tmp_path / "raw" / name / "reference.jsonl").write_text(lines(reference))
    (tmp_path / "raw" / "bench.jsonl").write_text(json.dumps({"question": LEAK}) + "\n")
    return tmp_path / "raw"


@pytest.fixture
def check(root, runs, tmp_path, monkeypatch, capsys):
    """Runs the verb; returns its status and what it printed."""
    monkeypatch.setattr(training, "train", lambda **_: pytest.fail("trained"))

    def call(*arguments, workdir=tmp_path / "w"):
        flags = runs.flags(workdir)[1:]
        own = [f"--config.data.root={root}", "--config.data.domains=a,b"]
        sizes = ["--config.data.row_length=128", "--config.data.test_examples=4"]
        status = cli.main(["data", *flags, *own, *sizes, *arguments])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_found(check, root, tmp_path):
    bench = f"--config.data.benchmarks={root / 'bench.jsonl'}"
    status, text = check(bench)
    assert status == 0
    folder = tmp_path / "w" / "data_check"
    assert sorted(path.name for path in folder.iterdir()) == [
        "contamination.jsonl",
        "duplicates.jsonl",
        "held_out.jsonl",
        "summary.json",
    ]
    (hit,) = rows(folder / "contamination.jsonl")
    where = {"domain": "a", "split": "train", "benchmark": "bench", "example": "a/train.jsonl:31"}
    assert hit == where | {
        "item": f"{root}/bench.jsonl:1",
        "share": 1.0,
        "shared": " ".join(LEAK.split()[:13]),
    }
    (held,) = rows(folder / "held_out.jsonl")
    assert (held["example"], held["set"]) == ("a/train.jsonl:33", "reference")
    assert held["item"] == "a/reference.jsonl:1"
    twice = [row for row in rows(folder / "duplicates.jsonl") if row["kind"] == "exact"]
    assert [(row["example"], row["of"]) for row in twice] == [
        ("a/train.jsonl:34", "a/train.jsonl:32")
    ]
    summary = json.loads((folder / "summary.json").read_text())
    keys = {"domain": "a", "split": "train", "benchmark": "bench"}
    assert summary["contamination"] == [keys | {"pairs": 1, "examples": 1, "clear": 1}]
    sizes = {(row["domain"], row["split"]): row["examples"] for row in summary["sets"]}
    assert sizes["b", "train"] == 26
    assert sizes["b", "test"] == sizes["b", "reference"] == 4
    assert all(sum(row["lengths"]["counts"]) == row["examples"] for row in summary["sets"])
    assert "a/train.jsonl:31 has 100% of" in text
    assert re.search(r"a/train +bench +1 +1", text)
    # The same data again, and what is known is only read.
    assert check(bench)[0] == 0
    assert "was prepared before" in check()[1]


def test_held_out_sets_are_told(check, root):
    (root / "b" / "reference.jsonl").unlink()
    status, text = check("--config.data.test_examples=3")
    assert status == 0
    assert (
        "data: b: no reference set is given: 4 of 30 train examples are held out as one, not the"
        " 256 of data.reference_examples: too large a part of them\n"
        "data: b: no test set is given: 3 of 30 train examples are held out as one\n" in text
    )
    assert "data: a: no reference" not in text


def test_contaminated_examples_can_be_left_out(check, root, tmp_path):
    status, text = check(f"--config.data.benchmarks={root}", "--config.data.decontaminate=True")
    assert status == 0
    assert "a: examples left out or cut: 1 contaminated" in text
    assert "no text in common with: bench" in text
    assert rows(tmp_path / "w" / "data_check" / "contamination.jsonl") == []


def test_every_bad_record_is_told(check, root, tmp_path):
    with (root / "a" / "train.jsonl").open("a") as file:
        file.write("{\n" * 25)
    with (root / "b" / "reference.jsonl").open("a") as file:
        file.write('{"prompt": "[red]x"}\n' + lines([("fine", "yes")]) + '{"prompt": 1}\n')
    status, text = check()
    assert status == 2
    for number in range(36, 56):
        assert f"{root}/a/train.jsonl:{number}: not valid JSON" in text
    assert "train.jsonl:56" not in text
    assert f"… and 5 more in {root}/a/train.jsonl" in text
    assert f"{root}/b/reference.jsonl:5: needs" in text
    assert f"{root}/b/reference.jsonl:7: needs" in text
    assert text.splitlines()[-1] == (
        f"ideal-jax: bad records: 25 in {root}/a/train.jsonl, 2 in {root}/b/reference.jsonl; "
        "they are listed above: mend or remove them"
    )
    assert not (tmp_path / "w" / "data" / "dataset.json").exists()


def test_examples_that_the_chat_template_refuses_are_all_told(check, root, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if 'from 7 ' in messages[0].content or messages[0].content == 'no' %}"
        "{{ raise_exception('not this') }}{% endif %}" + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path / "picky")
    status, text = check(f"--config.data.tokenizer={tmp_path / 'picky'}")
    assert status == 2
    for place in ("a/train.jsonl:8", "a/train.jsonl:32", "a/train.jsonl:34", "b/train.jsonl:8"):
        assert re.search(rf"{place} \(id .*\): the chat template refuses .* not this", text)
    assert "3 in" in text
    assert "1 in" in text


@pytest.fixture
def untaught(tmp_path):
    """A tokenizer without a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "untaught")
    return f"--config.data.tokenizer={tmp_path / 'untaught'}"


def test_a_tokenizer_without_a_template_is_one_line(check, untaught, tmp_path):
    status, text = check(untaught)
    assert status == 2
    (line,) = [line for line in text.splitlines() if "chat template" in line]
    assert line.startswith(f"ideal-jax: {tmp_path / 'untaught'} has no chat template; add")
    assert "bad records" not in text


def test_text_needs_no_template(check, untaught, root):
    for name in ("a", "b"):
        for part in ("train", "reference"):
            path = root / name / f"{part}.jsonl"
            said = [f'{{"text": "{part} {name} {number} and so on"}}' for number in range(12)]
            path.write_text("\n".join(said))
    assert check(untaught, "--show=1")[0] == 0


def test_what_ends_an_answer_is_told_where_no_template_does(check, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(" + '<|end|>'", "")
    tokenizer.save_pretrained(tmp_path / "open")
    status, text = check(f"--config.data.tokenizer={tmp_path / 'open'}", "--show=1")
    assert status == 0
    told = [line for line in text.splitlines() if line.startswith("data: the chat template")]
    assert len(told) == 1
    assert told[0].endswith("is learned as its end and ends generation: <|user|>")
    assert text.count("<|user|>⟧") == 2


def test_examples_are_shown_as_the_loss_sees_them(check):
    status, text = check("--show=1")
    assert status == 0
    shown = [line for line in text.splitlines() if line.startswith("<|user|>")]
    assert len(shown) == 2
    for line in shown:
        assert re.fullmatch(
            r"<\|user\|>count from \d+ to \d+ and say what you find there<\|assistant\|>"
            r"⟦\d+<\|end\|>⟧",
            line,
        )
    assert "<|user|>" not in check()[1]
    for wrong in ("x", "-1", "1.5"):
        status, text = check(f"--show={wrong}")
        assert status == 2
        assert f"--show={wrong}: expected how many examples of each domain to print" in text


def test_colour_where_there_is_some(check, tmp_path, runs, root):
    assert check()[0] == 0
    pairs = [flag[2:].split("=", 1) for flag in runs.flags(tmp_path / "w")[1:]]
    config = cli.config_lib.load(dict(pairs)["config"])
    config.data.root, config.data.domains = str(root), "a,b"
    config.data.row_length, config.data.test_examples = 128, 4
    data = prepare(data_section(config), tmp_path / "w" / "data", config.seed)
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, color_system="standard", width=200)
    print_examples(console, data, 128, 1)
    assert re.search(r"<\|assistant\|>\x1b\[1;4;32m\d+<\|end\|>\x1b\[0m", terminal.getvalue())
    assert "⟦" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.data.benchmarks=no/such", "data.benchmarks: no/such does not exist"),
        ("--config.data.decontaminate=1", "data.decontaminate needs data.benchmarks"),
        ("--config.data.domains=c", 'holds no domain "c"'),
        ("--config.data.supervise=none", "data.supervise='none' is not one of all, last"),
        ("--shw=1", "--shw: unknown flag"),
    ],
)
def test_mistakes_are_one_line(check, flag, message):
    status, text = check(flag)
    assert status == 2
    assert message in text.splitlines()[-1]


def test_a_run_goes_on_from_there(runs, tmp_path):
    workdir = tmp_path / "w"
    assert cli.main(["data", *runs.flags(workdir)[1:]]) == 0
    prepared = (workdir / "data" / "dataset.json").stat().st_mtime_ns
    assert runs.here(workdir, "--config.mixture.rounds=0", "--config.training.steps=2") == 0
    assert (workdir / "data" / "dataset.json").stat().st_mtime_ns == prepared
    assert cli.main(["data", *runs.flags(workdir)[1:]]) == 2  # of another config by now


def test_sparkline():
    assert sparkline([0, 1, 50, 100]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
