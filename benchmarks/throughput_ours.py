"""Our side of ``training_throughput.py``: reads a kind of work a line, answers with JSON."""

import dataclasses
import json
import pathlib
import resource
import sys
import time

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from ideal_jax import sharding, training
from ideal_jax.config import load
from ideal_jax.evaluation.generate import make_generate
from ideal_jax.influence import Sample, influence_matrix
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.models import (
    Decoder,
    DecoderConfig,
    choose_attention,
    decoder_loss,
    load_hf,
    random_params,
)
from ideal_jax.training.loop import start_state

BASE = pathlib.Path(__file__).parents[1] / "configs" / "base.py"
MAX_SEGMENTS = 33  # data.max_segments of the large configs, and padding
SAME = {"learning_rate": 1e-4, "warmup": 0.0, "schedule": "constant", "clip_norm": 1.0}
SAME |= {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.0}


def batch_of(tokens_BxT, packed):
    """A host batch whose rows hold ``packed`` examples of equal length."""
    B, T = tokens_BxT.shape
    segments = np.broadcast_to(1 + np.arange(T) * packed // T, (B, T)).astype(np.int32)
    last = np.diff(segments, axis=1, append=0) != 0
    first = np.maximum.accumulate(np.where(np.roll(last, 1, axis=1), np.arange(T), 0), axis=1)
    return {
        "tokens": tokens_BxT,
        "targets": np.roll(tokens_BxT, -1, axis=1),
        "positions": (np.arange(T) - first).astype(np.int32),
        "segments": segments,
        "weights": np.where(last, 0.0, 1.0).astype(np.float32),
        "domains": np.zeros(B, np.int32),
        "examples": np.arange(B * packed, dtype=np.int32).reshape(B, packed),
    }


def random_shape(sizes, dtype):
    """The decoder of ``training_throughput.SHAPES``."""
    d, layers, heads, kv_heads, width, d_ff, vocabulary, tied = sizes
    return DecoderConfig(
        vocab_size=vocabulary,
        d_model=d,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=width,
        d_ff=d_ff,
        tie_embeddings=tied,
        param_dtype=dtype,
    )


class Ours:
    """A decoder on all devices of the platform."""

    def __init__(self, given):
        self.given = given
        self.mesh = sharding.make_mesh()
        on_cpu = given["device"] == "cpu"
        self.dtype = "float32" if on_cpu else "bfloat16"
        if on_cpu:
            model, self.params = load_hf(given["folder"], mesh=self.mesh, dtype=self.dtype)
        else:
            model = Decoder(random_shape(given["sizes"], self.dtype))
            self.params = random_params(model, self.mesh, 0)
        placed = {key: given[key] for key in ("remat", "unroll")}
        placed["max_segments"] = 0 if on_cpu else MAX_SEGMENTS
        cfg = dataclasses.replace(model.cfg, dtype=self.dtype, **placed)
        kernel = choose_attention(
            given["attention"],
            cfg,
            platform=jax.default_backend(),
            row_length=given["length"],
        )
        self.model = Decoder(dataclasses.replace(cfg, attention=kernel), model.origin)
        self.rng = np.random.default_rng(0)
        self.state = None

    def tokens(self, rows, length):
        """Random tokens, the same on both sides."""
        return self.rng.integers(0, self.model.cfg.vocab_size, (rows, length), dtype=np.int32)

    def train(self):
        """Some optimizer steps; tokens per second."""
        given = self.given
        if self.state is None:
            moments = {"moment_dtype": "" if self.dtype == "float32" else self.dtype}
            options = FrozenConfigDict({**load(BASE).training, **SAME, **moments})
            optimizer = training.adamw(options, 10**6)
            self.state = start_state(self.mesh, self.params, optimizer)
            loss = decoder_loss(self.model, given["block"])
            step = training.make_train_step(loss, optimizer)
            shardings = jax.tree.map(lambda x: x.sharding, self.state)
            self.step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        started = time.perf_counter()
        with jax.set_mesh(self.mesh):
            for _ in range(given["steps"]):
                rows = batch_of(self.tokens(given["rows"], given["length"]), given["packed"])
                self.state, metrics = self.step(self.state, sharding.place(self.mesh, rows))
        loss, self.params = float(metrics.loss), self.state.params
        seconds = time.perf_counter() - started
        tokens = given["steps"] * given["rows"] * given["length"]
        return {"rate": tokens / seconds, "loss": loss, "detail": self.model.cfg.attention}

    def generate(self):
        """Greedy, from prompts of full length; new tokens per second."""
        rows, new = self.given["rows"], 64
        run = jax.jit(make_generate(self.model, max_new_tokens=new, end_id=-1))
        lengths = np.full(rows, self.given["length"], np.int32)
        with jax.set_mesh(self.mesh):
            placed = sharding.place(self.mesh, {"t": self.tokens(rows, lengths[0]), "l": lengths})
            started = time.perf_counter()
            jax.block_until_ready(run(self.params, placed["t"], placed["l"]))
        return {"rate": rows * new / (time.perf_counter() - started)}

    def influence(self):
        """Seconds of one matrix: a batch of curvature, of references and of scores."""
        given = self.given
        host = [batch_of(self.tokens(given["rows"], given["length"]), 1) for _ in range(3)]
        with jax.set_mesh(self.mesh):
            curvature, reference, scored = [sharding.place(self.mesh, rows) for rows in host]
            started = time.perf_counter()
            influence_matrix(
                decoder_problem(self.model, "mlp"),
                self.params,
                domains={"domain": Sample([scored], given["rows"])},
                references={"reference": Sample([reference], given["rows"])},
                curvature=[curvature],
                estimator="ekfac",
                uncovered="drop",
                max_factor=given["max_factor"],
                key=jax.random.key(0),
            )
        return {"rate": time.perf_counter() - started, "detail": "EK-FAC over the MLPs"}


def peak_gib(device):
    if device == "gpu":
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    given = json.loads(sys.argv[1])
    ours = Ours(given)
    for line in sys.stdin:
        result = getattr(ours, line.strip())()
        print(json.dumps({**result, "peak_gib": peak_gib(given["device"])}), flush=True)


if __name__ == "__main__":
    main()
