"""Is IDEAL's mixture better? The quick start against its controls, paired over seeds.

    python benchmarks/quickstart_table.py --start=unequal --seeds=11,12,13,14,15 --workdir=DIR

For every seed (base model, data, noise, order and sampling all change with it) one base model is
trained, and from it, with the same number of steps but where said otherwise:

    given          the given mixture
    equal          equal shares of the same total
    ideal          two updates by IDEAL as the quick start runs them (total kept)
    random         two steps of the same size in a random direction, same bounds
    published      two updates as published: m = 0.15, not centred, volume grows, steps grow with it
    volume         the given mixture at the volume and steps that ``published`` ended with
    longer         the given mixture, three times the steps
    dirichlet_00…  16 fixed mixtures drawn from Dirichlet(3, …, 3)

Decisions read reference numbers; the table is of the test split. ``recovered`` is the share of the
way from given to the best of {equal, 16 fixed mixtures} (best by reference loss, per seed).
Every training is kept: a second call continues. The unequal start (400/1400/400/400/1400, 40 % of
trust wrong) and the equal one (800 each) were fixed before the first result.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
from scipy import stats

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
STARTS = {"unequal": "400,1400,400,400,1400", "equal": "800,800,800,800,800"}
MIXTURES, MIXTURE_SEED = 16, 20250512
ORDER = ("given", "equal", "ideal", "random", "published", "volume", "longer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", choices=STARTS, default="unequal")
    parser.add_argument("--seeds", default="11,12,13,14,15")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="seeds trained side by side")
    parser.add_argument("--one-seed", type=int, help="(used by the script itself)")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", default="", help="comma-separated rows to train")
    arguments = parser.parse_args()
    if arguments.one_seed is not None:
        run_seed(arguments.one_seed, arguments)
        return
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    spawn(seeds, arguments)
    print(table(seeds, arguments))


def spawn(seeds: list[int], arguments: argparse.Namespace) -> None:
    """One process per seed, ``jobs`` at a time."""
    waiting, running = list(seeds), []
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            command = [sys.executable, __file__, *sys.argv[1:], f"--one-seed={waiting.pop(0)}"]
            running.append(subprocess.Popen(command))
        if running.pop(0).wait():
            sys.exit("a seed failed; its message is above")


def folder_of(seed: int, arguments: argparse.Namespace) -> pathlib.Path:
    return arguments.workdir / arguments.start / f"seed_{seed}"


def run_seed(seed: int, arguments: argparse.Namespace) -> None:
    """All trainings of one seed."""
    from ideal_jax.config import load
    from ideal_jax.mixture import update
    from ideal_jax.mixture.update import largest_remainder
    from ideal_jax.runs.evaluate_run import evaluate_round
    from ideal_jax.runs.ideal_run import next_state, plan_of
    from ideal_jax.runs.influence_record import influence_of_json
    from ideal_jax.runs.influence_round import influence_round
    from ideal_jax.runs.session import open_session
    from ideal_jax.runs.train_run import train_round

    config = load(CONFIG)
    config.seed = seed
    config.data.synthetic.counts = STARTS[arguments.start]
    config.logging.progress = False
    for item in arguments.override:
        key, _, value = item.partition("=")
        config.update_from_flattened_dict({key: type(config.get_oneway_ref(key).get())(value)})
    session = open_session(config, folder_of(seed, arguments), "quickstart_table")
    start = session.given
    total, n = int(start.counts.sum()), len(start.names)
    wanted = set(arguments.only.split(",")) - {""}

    def train(name: str, state: Any, steps: int | None = None, influence: Any = None) -> Any:
        """Trains and evaluates one mixture; returns the influence there if asked for."""
        folder = session.workdir.path / "rows" / name
        record = folder / "record.json"
        if record.exists() and influence is None:
            return None
        variant = session._replace(config=config.copy_and_resolve_references())
        if steps is not None:
            variant.config.training.steps = steps
        plan = plan_of(variant, state)
        trained = train_round(variant, plan, folder, name)
        if not record.exists():
            evaluation = evaluate_round(variant, trained.whole(variant), name)
            summary = {
                "counts": state.counts.tolist(),
                "steps": trained.record["steps"],
                "accuracy": evaluation["overall"],
                "loss": evaluation["test_loss_mean"],
                "selection_loss": evaluation["selection_loss"],
                "seconds": trained.record["seconds"],
            }
            record.write_text(json.dumps(summary))
            print(f"seed {seed} {name}: {summary}", flush=True)
        if influence is None:
            return None
        file = folder / f"influence_{influence}.json"
        if not file.exists():
            variant.config.influence.centred = influence == "centred"
            file.write_text(json.dumps(influence_round(variant, state, plan, trained)))
        return influence_of_json(json.loads(file.read_text()))

    def with_counts(counts: np.ndarray) -> Any:
        return start._replace(counts=np.asarray(counts, np.int64))

    def wants(name: str) -> bool:
        return not wanted or name in wanted

    steps = config.training.steps
    train("given", start)
    if wants("equal"):
        train("equal", with_counts(largest_remainder(np.full(n, total / n), total)))
    if wants("ideal"):
        state = next_state(session, start, train("given", start, influence="centred"))
        state = next_state(session, state, train("ideal_1", state, influence="centred"))
        train("ideal", state)
    if wants("random"):
        state, rng = start, np.random.default_rng(seed)
        like = train("given", start, influence="centred")
        for _ in range(2):
            state = next_state(session, state, like._replace(alpha=rng.standard_normal(n)))
        train("random", state)
    if wants("published"):
        state = start
        for name in ("given", "published_1"):
            grown = round(steps * int(state.counts.sum()) / total)
            influence = train(name, state, grown, influence="uncentred")
            state = update(state, influence, step=0.15, keep_total=False)
        volume = int(state.counts.sum())
        grown = round(steps * volume / total)
        train("published", state, grown)
        scaled = largest_remainder(start.counts * (volume / total), volume)
        train("volume", with_counts(scaled), grown)
    if wants("longer"):
        train("longer", start, 3 * steps)
    if wants("dirichlet"):
        for k, shares in enumerate(fixed_mixtures(n)):
            train(f"dirichlet_{k:02d}", with_counts(largest_remainder(shares * total, total)))


def fixed_mixtures(n: int) -> np.ndarray:
    """[16, n] shares: the same for every seed and both starts."""
    return np.random.default_rng(MIXTURE_SEED).dirichlet(np.full(n, 3.0), MIXTURES)


def table(seeds: list[int], arguments: argparse.Namespace) -> str:
    """The comparison as Markdown."""
    rows = {name: _read(name, seeds, arguments) for name in ORDER}
    mixtures = [_read(f"dirichlet_{k:02d}", seeds, arguments) for k in range(MIXTURES)]
    pool = [rows["equal"], *mixtures]
    chosen = np.argmin([row["selection_loss"] for row in pool], axis=0)
    best = {
        key: np.asarray([pool[c][key][s] for s, c in enumerate(chosen)])
        for key in ("accuracy", "loss")
    }
    mean = {key: np.mean([row[key] for row in mixtures], axis=0) for key in ("accuracy", "loss")}
    given = rows["given"]
    lines = [
        f"Start {STARTS[arguments.start]}, {len(seeds)} seeds ({arguments.seeds}); test split; "
        "Δ against given, paired, with 95 % t-interval.",
        "",
        "| mixture | steps | accuracy | Δ accuracy | loss (nats/token) | Δ loss | recovered |",
        "|---|---|---|---|---|---|---|",
    ]
    rounds = [given, _read("ideal_1", seeds, arguments), rows["ideal"]]
    picked = np.argmin([row["selection_loss"] for row in rounds], axis=0)
    best_round = {
        key: np.asarray([rounds[r][key][s] for s, r in enumerate(picked)])
        for key in ("accuracy", "loss")
    }
    named = [
        *rows.items(),
        ("ideal, after its first update", rounds[1]),
        ("ideal, best of its 3 rounds by reference", best_round),
        ("mean of 16 mixtures", mean),
        ("best of equal + 16, by reference", best),
    ]
    gap = best["loss"] - given["loss"]
    for name, row in named:
        steps = f"{np.mean(row['steps']):.0f}" if "steps" in row else f"{given['steps'][0]:.0f}"
        cells = [name, steps, _mean(row["accuracy"])]
        cells += [_delta(row["accuracy"] - given["accuracy"]), _mean(row["loss"])]
        change = row["loss"] - given["loss"]
        cells += [_delta(change), "–" if name == "given" else f"{change.mean() / gap.mean():.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Mean final counts (math, code, reason, instr, trust): "]
    lines[-1] += "; ".join(
        f"{name} {'/'.join(f'{c:.0f}' for c in np.mean(rows[name]['counts'], axis=0))}"
        for name in ("ideal", "random", "published")
    )
    return "\n".join(lines)


def _read(name: str, seeds: list[int], arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    files = [folder_of(seed, arguments) / "rows" / name / "record.json" for seed in seeds]
    records = [json.loads(file.read_text()) for file in files]
    return {key: np.asarray([record[key] for record in records], float) for key in records[0]}


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _delta(values: np.ndarray) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    if not values.any():
        return "0"
    return f"{values.mean():+.3f} [{values.mean() - half:+.3f}, {values.mean() + half:+.3f}]"


if __name__ == "__main__":
    main()
