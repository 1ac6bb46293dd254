"""Which estimator predicts retraining? ``ideal-jax verify`` of the quick start, over seeds.

    python benchmarks/estimators_table.py --seeds=21,22,23,24,25 --workdir=DIR [--config.x=y …]

For every seed (base model, data, noise, order and sampling change with it) the given mixture is
trained, every estimator computes the influence matrix there, and the training is repeated with each
domain's tokens counting 1 ± b, same batches and steps. The table holds estimator against truth:
mean over seeds with 95 % t-interval; the diagonal, where a domain helps itself, is the easy part,
so the correlation off it stands beside. "guess" asks no model: a domain lowers its own loss and
raises all others, in proportion to its share of the weight. Below the table: how far the slopes of
+b and −b agree, and the largest residual of a solve. Every training is kept: a second call
continues.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
from scipy import stats

from ideal_jax.influence.agreement import agreement

ROOT = pathlib.Path(__file__).parents[1]
ESTIMATORS = "identity,adam,fisher_diag,kfac,ekfac,ggn_cg,hessian_cg,metagradient,official"
COLUMNS = ("pearson", "spearman", "signs", "clear_signs", "slope", "apart")
GUESS = "guess"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="21,22,23,24,25")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.py"))
    parser.add_argument("--estimators", default=ESTIMATORS)
    parser.add_argument("--changes", default="0.15,0.5")
    parser.add_argument("--jobs", type=int, default=2, help="seeds side by side")
    arguments, overrides = parser.parse_known_args()
    seeds = arguments.seeds.split(",")
    waiting, running = list(seeds), []
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            seed = waiting.pop(0)
            command = [sys.executable, "-m", "ideal_jax", "verify", f"--config={arguments.config}"]
            command += [f"--workdir={arguments.workdir / f'seed_{seed}'}", f"--config.seed={seed}"]
            command += [f"--config.verify.estimators={arguments.estimators}"]
            command += [f"--config.verify.changes={arguments.changes}", *overrides]
            running.append(subprocess.Popen([*command, "--config.logging.progress=False"]))
        if running.pop(0).wait():
            sys.exit("a seed failed; its message is above")
    print(table(arguments.workdir, seeds))


def table(workdir: pathlib.Path, seeds: list[str]) -> str:
    """The comparison as Markdown."""
    folders = [workdir / f"seed_{seed}" / "verify" / "round_00" for seed in seeds]
    found = [compare(folder) for folder in folders]
    lines = [
        f"{len(seeds)} seeds ({', '.join(seeds)}); mean, 95 % t-interval over the seeds.",
        "",
        "| estimator | b | Pearson | Spearman | same sign | same sign, clear | slope |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines[-2] += " Pearson off the diagonal |"
    for estimator, change in found[0]:
        cells = [f"`{estimator}`" if estimator != GUESS else GUESS, change]
        for column in COLUMNS:
            values = np.array([rows[estimator, change][column] for rows in found])
            cells.append(_interval(values[np.isfinite(values)]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *facts(folders, seeds)])


def compare(folder: pathlib.Path) -> dict[tuple[str, str], dict[str, float]]:
    """The values of ``COLUMNS`` by estimator and b, for one seed."""
    order = json.loads((folder / "weights.json").read_text())["orders"][0]
    predictions = order["predictions"]
    file = folder / "order_0" / f"influence_{next(iter(predictions))}.json"
    p_n = np.array(json.loads(file.read_text())["shares"])
    guess = -p_n * (np.eye(len(p_n)) - p_n)
    predictions[GUESS] = {"matrix": guess, "stderr": np.full_like(guess, np.inf)}
    off = ~np.eye(len(p_n), dtype=bool)
    rows = {}
    for estimator, part in predictions.items():
        matrix, stderr = np.array(part["matrix"]), np.array(part["stderr"])
        for change, slopes in order["truth"].items():
            truth = np.array(slopes)
            rows[estimator, change] = agreement(matrix, stderr, truth)._asdict()
            apart = agreement(matrix[off], stderr[off], truth[off])
            rows[estimator, change]["apart"] = apart.pearson
    return rows


def facts(folders: list[pathlib.Path], seeds: list[str]) -> list[str]:
    """By seed: agreement of the truth's sides, and how far the solves are from solved."""
    lines = []
    for seed, folder in zip(seeds, folders, strict=True):
        sides = json.loads((folder / "weights.json").read_text())["orders"][0]["sides"]
        files = sorted((folder / "order_0").glob("influence_*.json"))
        records = [json.loads(file.read_text()) for file in files]
        left = {r["estimator"]: max(r["solve_residual"]) for r in records}
        lines.append(
            f"- seed {seed}: +b with -b "
            + ", ".join(f"{r:.2f} (b = {b})" for b, r in sides.items())
            + "; residual "
            + ", ".join(f"{x:.1g} ({name})" for name, x in left.items() if x > 1e-3)
        )
    return lines


def _interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return "–"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():.2g} ± {half:.1g}"


if __name__ == "__main__":
    main()
