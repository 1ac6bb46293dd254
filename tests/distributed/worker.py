"""One process of runs on one mesh after another; process 0 writes what it computed.

    python worker.py FOLDER DTYPE NAME=REPLICA,FSDP,TENSOR[,SLICES] …

Gradients at M_0 and five steps; then, at the parameters that "one" ended with, the factors of
EK-FAC and, for some names, the influence of domains. For some names also a Hugging Face
folder, written and read again. In float64 influence alone, by exact curvature too. All of it goes
to FOLDER/NAME_DTYPE.npz.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from ideal_jax import processes, sharding, trees
from ideal_jax.config import load, override
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.influence.kfac import factor_sums
from ideal_jax.influence.passes import Placement, accumulate
from ideal_jax.mixture import MixturePlan
from ideal_jax.models import decoder_loss, load_hf, save_hf
from ideal_jax.runs.influence_round import influence_round
from ideal_jax.runs.influence_samples import curvature_batches
from ideal_jax.runs.session import open_session
from ideal_jax.runs.train_run import start, train_round
from ideal_jax.training.step import accumulate as accumulate_gradients

WITHOUT_INFLUENCE = ("four", "sharded")
FOLDERS = ("one", "eight", "two")
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "tiny.py"
OVERRIDES = {
    "base.steps": "0",
    "training.steps": "5",
    "training.checkpoint_every": "5",
    "training.log_every": "1",
    "training.micro_batches": "2",
    # At the default 1e-8 Adam makes a full step of an entry whose gradient is rounding alone; there
    # is one in 20 000, and by itself it moves the parameters apart by 1e-5.
    "training.epsilon": "1e-6",
    "influence.curvature_examples": "16",
    "influence.tolerance": "0.0",
    "influence.iterations": "4",
    "logging.progress": "false",
}


def main(folder: str, dtype: str, *meshes: str) -> None:
    for mesh in meshes:
        name, _, sizes = mesh.partition("=")
        axes = dict(zip(("replica", "fsdp", "tensor", "slices"), sizes.split(","), strict=False))
        found = measure(pathlib.Path(folder), name, dtype, axes)
        if processes.is_writer():
            np.savez(f"{folder}/{name}_{dtype}.npz", **found)


def measure(folder, name, dtype, axes):
    """What one mesh gives: {name: array}."""
    config = load(CONFIG)
    changes = {f"mesh.{axis}": size for axis, size in axes.items()}
    kinds = {"model.dtype": dtype, "model.param_dtype": dtype}
    for key, value in {**OVERRIDES, **changes, **kinds}.items():
        override(config, key, value)
    session = open_session(config, folder / f"{name}_{dtype}", "worker")
    state = session.given
    plan = MixturePlan(tuple(map(int, state.available)), tuple(map(int, state.counts)), config.seed)
    begin = start(session).params
    found = {"devices": np.asarray(jax.device_count()), "hosts": np.asarray(jax.process_count())}
    single = dtype == "float32"
    if single:
        found |= {f"grad{k}": leaf for k, leaf in enumerate(gradients(session, plan, begin))}
    round_0 = session.workdir.round(0)
    trained = train_round(session, plan, round_0, "train")
    lines = (round_0 / "metrics.jsonl").read_text().splitlines()
    found["losses"] = np.asarray([json.loads(line)["loss"] for line in lines])
    kernel = trained.params["layers"]["mlp"]["up"]["kernel"]
    found["shard"] = np.asarray(kernel.addressable_shards[0].data.shape)
    found["whole"] = np.asarray(kernel.shape)
    ends = jax.tree.leaves(sharding.fetch(trained.params))
    found |= {f"param{k}": leaf for k, leaf in enumerate(ends)}
    params = common_parameters(folder / f"one_{dtype}.npz", trained.params)
    trained = trained._replace(state=trained.state._replace(params=params))
    if single:
        found |= factors(session, state, plan, params)
    # One mesh fits its layers in two groups, which changes memory alone.
    groups = {"ekfac": 2 if name == "eight" else 1} | ({} if single else {"ggn_cg": 1})
    for estimator in () if name in WITHOUT_INFLUENCE else groups:
        config.influence.estimator, config.influence.layer_groups = estimator, groups[estimator]
        # So few products solve nothing but a well damped system, and what failed is refused.
        config.influence.damping = 100.0 if estimator == "ggn_cg" else 0.1
        matrix = influence_round(session, state, plan, trained)["matrix"]
        found[estimator] = np.asarray(matrix)
    if single and name in FOLDERS:
        found |= through_hugging_face(session, folder / f"{name}_{dtype}" / "hf", params)
    return found


def common_parameters(path, like):
    """Those that "one" ended with, sharded ``like`` the ones at hand; in "one" these themselves."""
    if not path.exists():
        return like
    stored, (leaves, treedef) = np.load(path), jax.tree.flatten(like)
    placed = [
        jax.make_array_from_callback(x.shape, x.sharding, lambda i, a=stored[f"param{k}"]: a[i])
        for k, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, placed)


def factors(session, state, plan, params):
    """The Kronecker factors of every layer over the curvature's examples."""
    config = session.config
    problem = decoder_problem(session.model)
    fisher, widest, key = config.influence.fisher, 8192, jax.random.key(config.seed)
    batches = [batch for part in curvature_batches(session, {}, state, plan) for batch in part]
    placement = Placement.of(params)
    with jax.set_mesh(session.mesh):
        sums = accumulate(
            lambda b: factor_sums(problem, fisher, widest, placement, params, key, b),
            batches,
            phase="factors",
        )
    return {f"factor{k}": leaf for k, leaf in enumerate(jax.tree.leaves(sharding.fetch(sums)))}


def through_hugging_face(session, folder, params):
    """Whether a folder written by all and read again is the same, in the same shards."""
    save_hf(folder, session.model, params, shard_bytes=20_000)
    dtype = session.config.model.param_dtype
    _, reread = load_hf(folder, mesh=session.mesh, dtype=dtype)
    pairs = zip(*map(jax.tree.leaves, (params, reread)), strict=True)
    found = {"reread_in_shards": np.asarray(all(x.sharding == y.sharding for x, y in pairs))}
    for name, tree in (("reread", reread), ("digest", params)):
        whole = sharding.fetch(tree)  # a file has no padding of the vocabulary
        known = whole["embedding"][: session.model.cfg.vocab_size]
        found[name] = np.asarray(trees.digest({**whole, "embedding": known}))
    return found


def gradients(session, plan, params):
    """Leaves of the gradient of the first batch at ``params``."""
    from ideal_jax.data import packed_rows, training_batches

    config, data = session.config, session.config.data
    stores = [session.data.train[name] for name in session.names]
    size = config.training.batch_size
    table = packed_rows(plan, stores, data.row_length, data.max_segments, data.window)
    batches = training_batches(
        table,
        stores,
        batch_size=size,
        row_length=data.row_length,
        max_segments=data.max_segments,
        seed=config.seed,
        reduction="token",
        rows=sharding.local_rows(session.mesh, size),
    )
    loss = decoder_loss(session.model)
    micro = config.training.micro_batches
    with jax.set_mesh(session.mesh):
        batch = sharding.place(session.mesh, batches[0], size)
        grads = jax.jit(lambda p, b: accumulate_gradients(loss, p, b, micro)[1])(params, batch)
    return jax.tree.leaves(sharding.fetch(grads))


if __name__ == "__main__":
    main(*sys.argv[1:])
