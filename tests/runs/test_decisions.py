"""No decision reads the test split."""

import json

import numpy as np

from ideal_jax.data import synthetic
from ideal_jax.mixture import MixtureState, update
from ideal_jax.runs.influence_record import influence_of_json


def rotate_answers(file):
    """Every test prompt gets the answer of another."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    answers = [record["messages"][-1]["content"] for record in records]
    for record, answer in zip(records, answers[1:] + answers[:1], strict=True):
        record["messages"][-1]["content"] = answer
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def check_choice(workdir, results):
    """The choice and the mixture can be made again from what the files hold, to the bit."""

    def read(k, name):
        return json.loads((workdir / "rounds" / f"{k:02d}" / name).read_text())

    losses = [read(k, "evaluation.json")["selection"] for k in range(2)]
    differences, variances = [], []
    for name in ("math", "code"):
        given, other = (half[name] for half in losses)
        assert given["items"] == other["items"] == sorted(set(given["items"]))
        assert given["tokens"] == other["tokens"]
        w, m = np.asarray(given["tokens"]), len(given["items"])
        apart = np.asarray(other["loss"]) - np.asarray(given["loss"])
        d = apart.sum() / w.sum()
        differences.append(d)
        variances.append(m * (apart - d * w).var(ddof=1) / w.sum() ** 2)
        recorded = results["rounds"][1]["against_given"]["capabilities"][name]
        np.testing.assert_allclose(recorded["difference"], d)
    d, error = np.mean(differences), np.sqrt(np.sum(variances)) / 2
    recorded = results["rounds"][1]["against_given"]
    np.testing.assert_allclose([recorded["difference"], recorded["stderr"]], [d, error])
    apart = [record["selection_loss"] for record in results["rounds"]]
    np.testing.assert_allclose(apart[1] - apart[0], d, atol=1e-9)
    assert results["best_round"] == (1 if d < -1.959964 * error else 0)

    before, after = (read(k, "mixture.json")["domains"] for k in range(2))
    columns = [np.asarray([row[key] for row in before]) for key in ("available", "count", "beta")]
    state = MixtureState(("math", "code"), *columns, 0, np.asarray([x["volume"] for x in before]))
    influence = influence_of_json(read(0, "influence.json"))
    following = update(state, influence, step=0.5, keep_total=True, min_share=0.01)
    assert [row["count"] for row in after] == following.counts.tolist()
    assert [row["volume"] for row in after] == following.volume.tolist()


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
        check_choice(tmp_path / name, results[name])
    true, rotated = results["true"], results["rotated"]
    assert rotated["best_round"] == true["best_round"]
    for a, b in zip(rotated["rounds"], true["rounds"], strict=True):
        for key in ("mixture", "reference_loss", "selection_loss", "params_sha256"):
            assert a[key] == b[key]
        assert not np.allclose(list(a["test_loss"].values()), list(b["test_loss"].values()))
