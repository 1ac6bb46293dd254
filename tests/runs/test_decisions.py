"""No decision reads the test split."""

import json

import numpy as np

from ideal_jax.data import synthetic


def rotate_answers(file):
    """Every test prompt gets the answer of another."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    answers = [record["messages"][-1]["content"] for record in records]
    for record, answer in zip(records, answers[1:] + answers[:1], strict=True):
        record["messages"][-1]["content"] = answer
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_other_test_answers_give_the_same_mixture_and_best_round(runs, tmp_path):
    results = {}
    for name in ("true", "rotated"):
        root = tmp_path / f"data_{name}"
        synthetic.write(root, seed=0, counts=(20, 60, 4, 4, 4), reference=24, test=12)
        if name == "rotated":
            for domain in ("math", "code"):
                rotate_answers(root / domain / "test.jsonl")
        assert runs.here(tmp_path / name, f"--config.data.root={root}") == 0
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
    true, rotated = results["true"], results["rotated"]
    assert rotated["best_round"] == true["best_round"]
    for a, b in zip(rotated["rounds"], true["rounds"], strict=True):
        for key in ("mixture", "reference_loss", "selection_loss", "params_sha256"):
            assert a[key] == b[key]
        assert not np.allclose(list(a["test_loss"].values()), list(b["test_loss"].values()))
