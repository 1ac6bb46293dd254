"""One process of a run on some mesh; process 0 writes what it computed.

    python worker.py WORKDIR OUT.npz MESH [PARAMS.npz] [KEY=VALUE …]      MESH = replica,fsdp,tensor

Gradients at M_0, five steps, and at PARAMS (by default the end of the five steps) influence and a
Hugging Face folder, written and read again.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from ideal_jax import sharding, training, trees
from ideal_jax.config import load, override
from ideal_jax.mixture import MixturePlan
from ideal_jax.models import load_hf, save_hf
from ideal_jax.runs.influence_round import influence_round
from ideal_jax.runs.session import open_session
from ideal_jax.runs.train_run import start, train_round
from ideal_jax.training.step import accumulate

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "tiny.py"
OVERRIDES = {
    "base.steps": "0",
    "training.steps": "5",
    "training.checkpoint_every": "5",
    "training.log_every": "1",
    # At the default 1e-8 Adam makes a full step of an entry whose gradient is rounding alone; there
    # is one in 20 000, and by itself it moves the parameters apart by 1e-5.
    "training.epsilon": "1e-6",
    "influence.tolerance": "0.0",
    "influence.iterations": "4",
    "logging.progress": "false",
}


def main(workdir: str, out: str, mesh: str, *rest: str) -> None:
    files = [word for word in rest if word.endswith(".npz")]
    changes = dict(word.split("=") for word in rest if "=" in word)
    axes = dict(zip(("mesh.replica", "mesh.fsdp", "mesh.tensor"), mesh.split(","), strict=True))
    config = load(CONFIG)
    for key, value in {**OVERRIDES, **axes, **changes}.items():
        override(config, key, value)
    session = open_session(config, workdir, "worker")
    state = session.given
    plan = MixturePlan(tuple(map(int, state.available)), tuple(map(int, state.counts)), config.seed)
    begin = start(session).params
    found = {"devices": np.asarray(jax.device_count())}
    found |= {f"grad{k}": leaf for k, leaf in enumerate(gradients(session, plan, begin))}
    folder = session.workdir.round(0)
    trained = train_round(session, plan, folder, "train")
    params = trained.params
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    found["shard"] = np.asarray(kernel.addressable_shards[0].data.shape)
    found["whole"] = np.asarray(kernel.shape)
    found |= {f"param{k}": leaf for k, leaf in enumerate(jax.tree.leaves(sharding.fetch(params)))}
    if files:
        leaves, treedef = jax.tree.flatten(params)
        common = np.load(files[0])
        stored = [common[f"param{k}"] for k in range(len(leaves))]
        params = jax.tree.unflatten(
            treedef,
            [
                jax.make_array_from_callback(x.shape, x.sharding, lambda i, a=a: a[i])
                for a, x in zip(stored, leaves, strict=True)
            ],
        )
    trained = trained._replace(state=trained.state._replace(params=params))
    exported = pathlib.Path(workdir) / "hf"
    save_hf(exported, session.model, params, shard_bytes=20_000)
    _, reread = load_hf(exported, mesh=session.mesh, dtype=config.model.param_dtype)
    split = [
        x.sharding == y.sharding
        for x, y in zip(*map(jax.tree.leaves, (params, reread)), strict=True)
    ]
    found["reread_in_shards"] = np.asarray(all(split))
    for name, tree in (("reread", reread), ("digest", params)):
        whole = sharding.fetch(tree)  # a file has no padding of the vocabulary
        known = whole["embedding"][: session.model.cfg.vocab_size]
        found[name] = np.asarray(trees.digest({**whole, "embedding": known}))
    # Exact curvature preconditioned by EK-FAC, and EK-FAC itself with its layers in two groups.
    for estimator, groups in (("ggn_cg", 1), ("ekfac", 2)):
        config.influence.estimator, config.influence.layer_groups = estimator, groups
        influence = influence_round(session, state, plan, trained)
        found[estimator] = np.asarray(influence["matrix"])
    if jax.process_index() == 0:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        found["losses"] = np.asarray([json.loads(line)["loss"] for line in lines])
        np.savez(out, **found)


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
    loss = training.decoder_loss(session.model)
    micro = config.training.micro_batches
    with jax.set_mesh(session.mesh):
        batch = sharding.place(session.mesh, batches[0], size)
        grads = jax.jit(lambda p, b: accumulate(loss, p, b, micro)[1])(params, batch)
    return jax.tree.leaves(sharding.fetch(grads))


if __name__ == "__main__":
    main(*sys.argv[1:])
