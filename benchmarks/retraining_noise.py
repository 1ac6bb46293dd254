"""How much is one retraining of the quick start worth? Noise against the effect of one update.

    python benchmarks/retraining_noise.py --seeds=51,52,53,54,55 --workdir=DIR

The protocol, fixed before the first result. A setting is how rows are ordered, how many examples
are packed together, the peak learning rate and the steps:

    number:256:3e-3:256   before: rows shuffled by their number in the whole plan
    shared:64:3e-3:256    rows that two mixtures share keep their order (``row_order``)
    …                     the same two at 1e-3, and shared rows at 5e-4 and for 384 steps

For every seed (base model, data, noise and plans change with it) seven mixtures are trained, evenly
from the given one to one moved by a standard step (a domain changes by half at most, the total
stays, toward equal shares: fixed, not IDEAL's), and with shared rows the given mixture in four more
orders. Told of the mean loss over capabilities, on the test and the reference split:

    orders  deviation between row orders of the same mixture
    line    residual deviation around a parabola through the seven mixtures
    change  the parabola's end less its start, mean over seeds

The regime is the setting with the smallest line/|change| of the reference loss; what is within one
standard error of it is decided by fewer steps, then by the larger rate. Every training is kept.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
SETTINGS = (
    "number:256:3e-3:256",
    "shared:64:3e-3:256",
    "number:256:1e-3:256",
    "shared:64:1e-3:256",
    "shared:64:5e-4:256",
    "shared:64:1e-3:384",
)
GIVEN, MOVED = np.array([400, 1400, 400, 400, 1400]), np.array([600, 1100, 600, 600, 1100])
ORDERS, POINTS = 5, 7
SPLITS = ("test", "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="51,52,53,54,55")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    settings = arguments.settings.split(",")
    for seed in seeds:
        measure(seed, settings, arguments.workdir / f"seed_{seed}")
    print(table(settings, seeds, arguments.workdir))


def measure(seed: int, settings: list[str], folder: pathlib.Path) -> None:
    """Trains what is missing of one seed."""
    from ideal_jax.config import load
    from ideal_jax.runs.session import open_session

    config = load(CONFIG)
    config.seed = seed
    config.eval.tasks = ""
    config.logging.progress = False
    session = open_session(config, folder / "run", "retraining_noise")
    for setting in settings:
        file = folder / f"{setting}.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        trainer: Any = None
        wanted = [(0, point) for point in range(POINTS)]
        if setting.startswith("shared"):
            wanted += [(order, 0) for order in range(1, ORDERS)]
        for order, point in wanted:
            name = f"{order}/{point}"
            if name in found:
                continue
            trainer = trainer or _Trainer(session, setting)
            found[name] = trainer.losses(point / (POINTS - 1), order)
            file.write_text(json.dumps(found))
            print(f"seed {seed}, {setting}, order/point {name}: {found[name]}", flush=True)


class _Trainer:
    """One setting: its training as one compiled loop over the steps."""

    def __init__(self, session: Any, setting: str):
        import jax

        from ideal_jax.models import example_losses

        self._by, window, rate, self._steps = setting.split(":")
        config = session.config.copy_and_resolve_references()
        config.data.window, config.training.steps = int(window), int(self._steps)
        config.training.learning_rate = float(rate)
        self._base_session, self._session = session, session._replace(config=config)
        self._losses = jax.jit(example_losses(session.whole_model, config.loss.block))
        self._loop: Any = None

    def losses(self, t: float, order: int) -> dict[str, float]:
        """Mean loss over capabilities, by split, at GIVEN + t (MOVED − GIVEN)."""
        import jax

        from ideal_jax.data import pipeline
        from ideal_jax.mixture import MixturePlan, permutation
        from ideal_jax.mixture.update import largest_remainder
        from ideal_jax.runs.train_run import round_recipe, start
        from ideal_jax.training import make_train_step, start_state

        session = self._session
        begin = start(self._base_session)  # trained once, whatever the setting
        counts = largest_remainder((1 - t) * GIVEN + t * MOVED, GIVEN.sum())
        plan = MixturePlan(
            tuple(session.given.available.tolist()), tuple(counts.tolist()), session.config.seed
        )
        recipe = round_recipe(session, plan, order=order)
        shared = pipeline.row_order
        if self._by == "number":

            def by_number(sizes: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
                return permutation(sum(sizes), seed, epoch, 0x0EDE)

            pipeline.row_order = by_number  # type: ignore[assignment]
        batches = [recipe.batches[step] for step in range(recipe.steps)]
        pipeline.row_order = shared
        if self._loop is None:
            step = make_train_step(recipe.loss_fn, recipe.optimizer)
            self._loop = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches)[0])
        with jax.set_mesh(session.mesh):
            state = start_state(session.mesh, begin.params, recipe.optimizer)
            state = self._loop(state, jax.tree.map(lambda *x: np.stack(x), *batches))
        return {split: self._mean_loss(state.params, split) for split in SPLITS}

    def _mean_loss(self, params: Any, split: str) -> float:
        from ideal_jax.data import example_batches
        from ideal_jax.evaluation import domain_losses

        session = self._session
        values = []
        for j, domain in enumerate(session.names):
            store = getattr(session.data, split)[domain]
            batches = example_batches(
                store, range(len(store)), j, batch_size=64, lengths=(32, 64), reduction="token"
            )
            values.append(domain_losses(self._losses, session.mesh, params, batches).mean())
        return float(np.mean(values))


def table(settings: list[str], seeds: list[int], folder: pathlib.Path) -> str:
    """What was measured, as Markdown; deviations are pooled over seeds."""
    lines = [
        f"{len(seeds)} seeds ({','.join(map(str, seeds))}).",
        "",
        "| setting | split | orders | line | change | line/change | line, by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in settings:
        found = [json.loads((folder / f"seed_{s}" / f"{setting}.json").read_text()) for s in seeds]
        for split in SPLITS:
            lines.append("| " + " | ".join([setting, split, *_row(found, split)]) + " |")
    return "\n".join(lines)


def _row(found: list[dict[str, dict[str, float]]], split: str) -> list[str]:
    line = np.array(
        [[losses[f"0/{point}"][split] for losses in found] for point in range(POINTS)]
    )  # [points, seeds]
    x = np.vander(np.arange(POINTS), 3)
    fitted = x @ np.linalg.lstsq(x, line, rcond=None)[0]
    by_seed = np.sqrt(((line - fitted) ** 2).sum(axis=0) / (POINTS - 3))
    rough = np.sqrt((by_seed**2).mean())
    changes = fitted[-1] - fitted[0]
    change, error = changes.mean(), changes.std(ddof=1) / np.sqrt(len(found))
    ratio = rough / abs(change)
    # A deviation of k degrees of freedom is known to 1/√(2k), the change to its own error.
    known = np.hypot(1 / np.sqrt(2 * (POINTS - 3) * len(found)), error / change)
    orders = "–"
    if "1/0" in found[0]:
        same = np.array([[x[f"{order}/0"][split] for x in found] for order in range(ORDERS)])
        orders = f"{np.sqrt(same.var(axis=0, ddof=1).mean()):.4f}"
    return [
        orders,
        f"{rough:.4f}",
        f"{change:+.4f} ± {error:.4f}",
        f"{ratio:.2f} ± {ratio * known:.2f}",
        ", ".join(f"{value:.4f}" for value in by_seed),
    ]


if __name__ == "__main__":
    main()
