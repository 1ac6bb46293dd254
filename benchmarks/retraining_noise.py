"""How much is one retraining of the quick start worth? Noise against the effect of one update.

    python benchmarks/retraining_noise.py --seeds=41,42,43,44,45 --workdir=DIR

The protocol, fixed before the first result. A setting is how rows are ordered, how many examples
are packed together, the peak learning rate and the steps:

    number:256:3e-3:256   before: rows shuffled by their number in the whole plan
    shared:64:3e-3:256    rows that two mixtures share keep their order (``row_order``)
    …                     the same two at 1e-3, and shared rows at 5e-4 and for 384 steps

For every seed (base model, data, noise and plans change with it) the given mixture and one moved by
a standard step of the quick start (a domain changes by half at most, the total stays, toward equal
shares; fixed, not IDEAL's) are trained in five row orders each, and five mixtures between the two
in the first order. Told of the mean loss over capabilities, on the test and the reference split:

    noise   deviation between orders of the same mixture
    paired  deviation between orders of the difference moved − given, both in the same order
    change  that difference, mean over orders and seeds
    line    residual deviation around a parabola through the seven mixtures of the line

The regime is the setting with the smallest paired/|change| of the reference loss; what is within
one standard error of it is decided by fewer steps, then by the larger rate. Every training is kept.
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
    parser.add_argument("--seeds", default="41,42,43,44,45")
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
        for order, point in [(o, p) for o in range(ORDERS) for p in range(POINTS)]:
            name = f"{order}/{point}"
            if name in found or (order and point not in (0, POINTS - 1)):
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
        f"{len(seeds)} seeds ({','.join(map(str, seeds))}), {ORDERS} orders.",
        "",
        "| setting | split | noise | paired | change ± error over seeds | paired/change ± error"
        " | line | line/change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in settings:
        found = [json.loads((folder / f"seed_{s}" / f"{setting}.json").read_text()) for s in seeds]
        for split in SPLITS:
            lines.append("| " + " | ".join([setting, split, *_row(found, split)]) + " |")
    return "\n".join(lines)


def _row(found: list[dict[str, dict[str, float]]], split: str) -> list[str]:
    def of(order: int, point: int) -> np.ndarray:
        return np.array([losses[f"{order}/{point}"][split] for losses in found])

    ends = np.array([[of(order, p) for order in range(ORDERS)] for p in (0, POINTS - 1)])
    difference = ends[1] - ends[0]  # [orders, seeds]
    noise = np.sqrt(ends.var(axis=1, ddof=1).mean())
    paired = np.sqrt(difference.var(axis=0, ddof=1).mean())
    by_seed = difference.mean(axis=0)
    change, error = by_seed.mean(), by_seed.std(ddof=1) / np.sqrt(len(found))
    line = np.array([of(0, point) for point in range(POINTS)])
    x = np.vander(np.arange(POINTS), 3)
    residual = line - x @ np.linalg.lstsq(x, line, rcond=None)[0]
    rough = np.sqrt((residual**2).sum() / (residual.size - 3 * len(found)))
    ratio = paired / abs(change)
    # A deviation of k degrees of freedom is known to 1/√(2k), the change to its own error.
    known = np.hypot(1 / np.sqrt(2 * (ORDERS - 1) * len(found)), error / change)
    return [
        f"{noise:.4f}",
        f"{paired:.4f}",
        f"{change:+.4f} ± {error:.4f}",
        f"{ratio:.2f} ± {ratio * known:.2f}",
        f"{rough:.4f}",
        f"{rough / abs(change):.2f}",
    ]


if __name__ == "__main__":
    main()
