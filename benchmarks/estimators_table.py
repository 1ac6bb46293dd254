"""Which estimator predicts retraining? ``ideal-jax verify`` of the quick start, over seeds.

    python benchmarks/estimators_table.py --seeds=21,22,23,24,25 --workdir=DIR [--config.x=y …]

For every seed (base model, data, noise, order and sampling change with it) the given mixture is
trained, every estimator computes the influence matrix there, and the training is repeated with each
domain's tokens counting 1 ± b, same batches and steps. The table holds estimator against truth:
mean over seeds with 95 % t-interval. Every training is kept: a second call continues.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
from scipy import stats

ROOT = pathlib.Path(__file__).parents[1]
ESTIMATORS = "identity,adam,fisher_diag,kfac,ekfac,ggn_cg,hessian_cg,metagradient,official"
COLUMNS = ("pearson", "spearman", "signs", "clear_signs", "slope")


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
    files = [workdir / f"seed_{seed}/verify/round_00/weights.json" for seed in seeds]
    records = [json.loads(file.read_text())["summary"] for file in files]
    lines = [
        f"{len(seeds)} seeds ({', '.join(seeds)}); mean, 95 % t-interval over the seeds.",
        "",
        "| estimator | b | Pearson | Spearman | same sign | same sign, clear | slope |",
        "|---|---|---|---|---|---|---|",
    ]
    for k, first in enumerate(records[0]):
        cells = [f"`{first['estimator']}`", f"{first['change']:g}"]
        for column in COLUMNS:
            values = [rows[k][column] for rows in records]
            cells.append(_interval(np.asarray([v for v in values if v is not None])))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return "–"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():.2g} ± {half:.1g}"


if __name__ == "__main__":
    main()
