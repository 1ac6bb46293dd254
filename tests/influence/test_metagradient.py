"""The metagradient against central differences of whole training runs, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_matrix import setting

from ideal_jax.errors import UserError
from ideal_jax.influence import metagradient
from ideal_jax.training.step import init_state, make_train_step

STEPS = 12
NAMES = ("math", "code", "safety")
OPTIMIZERS = {
    "sgd": optax.sgd(optax.cosine_decay_schedule(0.3, STEPS), momentum=0.9),
    "adamw": optax.chain(
        optax.clip_by_global_norm(0.3),
        optax.adamw(optax.cosine_decay_schedule(0.03, STEPS), weight_decay=0.1, eps_root=1e-30),
    ),
}


def adapted(tiny):
    """A problem whose parameters are a low-rank change of one kernel, the rest frozen (LoRA)."""

    def loss(adapter, batch):
        kernel = tiny.params["head"]["kernel"] + adapter["down"] @ adapter["up"]
        return tiny.problem.example_loss({**tiny.params, "head": {"kernel": kernel}}, batch)

    down = jax.random.normal(jax.random.key(3), (4, 2))
    return loss, {"down": down, "up": jnp.zeros((2, 5))}


def weigh(batch, weights_n):
    return {**batch, "weights": batch["weights"] * weights_n[batch["domains"]][:, None]}


def trajectory(tiny, optimizer, micro_batches=2, example_loss=None, params=None):
    """A short run over batches of mixed domains; one token of the vocabulary never occurs."""
    rng = np.random.default_rng(0)
    parts = [tiny.examples(16, seed=k, tilt=2 * k) for k in range(3)]
    pool = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    pool["domains"] = np.repeat(np.arange(3), 16)
    pool["tokens"] = np.minimum(pool["tokens"], 5)
    pool["segments"] = pool["mask"].astype(int)
    batches = []
    for _ in range(STEPS):
        chosen = rng.choice(48, 8, replace=False)
        batches.append({k: jnp.asarray(x[chosen]) for k, x in pool.items()})

    example_loss = example_loss or tiny.problem.example_loss

    def loss(params, batch):
        l_B, w_B = example_loss(params, batch)
        return l_B.sum(), w_B.sum()

    step = make_train_step(loss, optimizer, micro_batches)
    start = init_state(params or tiny.params, optimizer)

    @jax.jit
    def final(weights_n):
        every = jax.tree.map(lambda *x: jnp.stack(x), *batches)
        return jax.lax.scan(lambda s, b: step(s, weigh(b, weights_n)), start, every)[0].params

    state = start
    for batch in batches:
        state, _ = jax.jit(step)(state, batch)
    run = metagradient.Trajectory(
        start, step, weigh, batches, lambda s: s.params, state.params, NAMES
    )
    return run, final


def references(tiny):
    return setting(tiny)["references"]


@pytest.mark.parametrize(("name", "lora"), [("sgd", False), ("adamw", False), ("adamw", True)])
def test_both_modes_equal_differences_of_whole_runs(tiny, name, lora):
    loss_fn, params = adapted(tiny) if lora else (tiny.problem.example_loss, tiny.params)
    run, final = trajectory(tiny, OPTIMIZERS[name], example_loss=loss_fn, params=params)
    held = references(tiny)

    @jax.jit
    def objective(params):
        sums = []
        for sample in held.values():
            pairs = [loss_fn(params, b) for b in sample.batches]
            sums.append(sum(a.sum() for a, _ in pairs) / sum(w.sum() for _, w in pairs))
        return jnp.stack(sums)

    h = 1e-4
    truth = np.stack(
        [(objective(final(1 + h * e)) - objective(final(1 - h * e))) / (2 * h) for e in jnp.eye(3)],
        axis=1,
    )
    scale = np.abs(truth).max()
    for mode in (metagradient.forward, metagradient.reverse):
        found = mode(run, loss_fn, held)
        assert np.abs(found.matrix - truth).max() <= 1e-6 * scale
        assert np.abs(found.matrix.sum(1)).max() <= 1e-12 * scale
        np.testing.assert_allclose(found.reference_loss, objective(run.final), rtol=1e-12)
    forward = metagradient.forward(run, loss_fn, held)
    assert np.all(forward.variance_reference > 0)
    matrix = metagradient.metagradient_matrix(
        forward,
        references=tuple(held),
        domains=NAMES,
        shares=np.full(3, 1 / 3),
        weights=(0.25, 0.75),
    )
    np.testing.assert_allclose(matrix.alpha, [0.25, 0.75] @ forward.matrix)
    np.testing.assert_allclose(matrix.alpha_stderr**2, [0.0625, 0.5625] @ matrix.stderr**2)


def test_another_end_is_refused(tiny):
    run, _ = trajectory(tiny, OPTIMIZERS["sgd"])
    leaf = run.final["layers"]["bias"]
    other = {**run.final, "layers": {**run.final["layers"], "bias": leaf.at[0, 0].add(1e-12)}}
    for mode in (metagradient.forward, metagradient.reverse):
        with pytest.raises(UserError, match="does not end in the stored parameters"):
            mode(run._replace(final=other), tiny.problem.example_loss, references(tiny))


@pytest.mark.parametrize("mode", [metagradient.forward, metagradient.reverse])
def test_progress_reaches_its_end(tiny, mode):
    run, _ = trajectory(tiny, OPTIMIZERS["sgd"])
    events = []
    mode(run, tiny.problem.example_loss, references(tiny), progress=lambda *e: events.append(e))
    steps = [(done, total) for phase, done, total in events if phase == "replay"]
    assert steps[-1][0] == steps[-1][1]
    assert steps == sorted(steps)
