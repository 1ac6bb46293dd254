"""A tiny token classifier in plain JAX, in float64: embedding, scanned dense layers, a head.

The layers mix tokens (each reads the mean of its example), so unsupervised tokens carry gradient.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ideal_jax.influence import Problem, TapLayer, Taps

VOCAB, WIDTH, LAYERS, CLASSES = 7, 4, 2, 5


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def init(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "embed": jax.random.normal(keys[0], (VOCAB, WIDTH)),
        "layers": {
            "bias": 0.1 * jax.random.normal(keys[1], (LAYERS, WIDTH)),
            "kernel": jax.random.normal(keys[2], (LAYERS, WIDTH, WIDTH)) / WIDTH**0.5,
        },
        "head": {"kernel": jax.random.normal(keys[3], (WIDTH, CLASSES)) / WIDTH**0.5},
    }


def run(params, batch, up, head):
    """Outputs, and the inputs of the dense layers.

    ``up[0](x, y, own)`` and ``head(x, y)`` say what becomes of a dense layer's output y; ``own`` is
    the layer's slice of the arrays ``up[1]``.
    """
    up, own = up
    real = batch["mask"][..., None]
    h = params["embed"][batch["tokens"]] * real

    @jax.checkpoint
    def layer(h, p):
        kernel, bias, own = p
        a = h + jnp.sum(h * real, 1, keepdims=True) / jnp.maximum(jnp.sum(real, 1), 1)[:, None]
        return jnp.tanh(up(a, a @ kernel + bias, own)), a

    layers = params["layers"]
    h, inputs = jax.lax.scan(layer, h, (layers["kernel"], layers["bias"], own))
    return head(h, h @ params["head"]["kernel"]), {"up": inputs, "head": h}


def perturbed(params, perturbations, batch):
    """Outputs with something added to each dense layer's output, and each one's input."""
    up = (lambda x, y, own: y + own, perturbations["up"])
    return run(params, batch, up, lambda x, y: y + perturbations["head"])


def zeros(params, batch):
    shape = batch["tokens"].shape
    return {
        "up": jnp.zeros((LAYERS, *shape, WIDTH), params["embed"].dtype),
        "head": jnp.zeros((*shape, CLASSES), params["embed"].dtype),
    }


def tapped(params, taps, batch):
    up = lambda x, y, own: own["up"](x, y) if "up" in own else y  # noqa: E731
    head = taps.get("head", lambda x, y: y)
    return run(params, batch, (up, {k: v for k, v in taps.items() if k == "up"}), head)[0]


def outputs(params, batch):
    return tapped(params, {}, batch)


def loss(out, batch):
    nll = -jnp.take_along_axis(jax.nn.log_softmax(out), batch["targets"][..., None], -1)[..., 0]
    return jnp.sum(nll * batch["weights"], 1), jnp.sum(batch["weights"], 1)


def sample_labels(out, batch, key):
    def draw(example, position, logits):
        mine = jax.random.fold_in(jax.random.fold_in(key, example), position)
        return jax.random.categorical(mine, logits)

    rows = jax.vmap(jax.vmap(draw, (None, 0, 0)), (0, None, 0))
    labels = rows(batch["ids"], jnp.arange(out.shape[1]), out)
    return {**batch, "targets": labels, "weights": jnp.sqrt(batch["weights"])}


TAPS = Taps(
    run=tapped,
    mask=lambda batch: batch["mask"],
    layers=(
        TapLayer("up", ("layers", "kernel"), scanned=True),
        TapLayer("head", ("head", "kernel")),
    ),
)


def ridge(params):
    return 0.05 * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def make_examples(count, seed=0, *, tokens=5, reduction="token", tilt=0):
    """Examples of unequal length, about half their tokens supervised; ``tilt`` shifts labels."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, tokens + 1, count)
    mask = np.arange(tokens) < lengths[:, None]
    inputs = rng.integers(0, VOCAB, (count, tokens)) * mask
    labels = (inputs + rng.integers(0, 3, (count, tokens)) + tilt) % CLASSES
    supervised = mask & (rng.random((count, tokens)) < 0.6)
    supervised[np.arange(count), lengths - 1] = True
    weights = supervised.astype(float)
    if reduction == "example":
        weights /= weights.sum(1, keepdims=True)
    return {
        "tokens": inputs,
        "targets": labels,
        "weights": weights,
        "mask": mask,
        "ids": np.arange(count) + 1000 * seed,
    }


def make_batches(examples, size, *, extra_tokens=0):
    """Batches of ``size`` rows; the last is filled up with empty rows, all with empty tokens."""
    count = len(examples["ids"])
    out = []
    for start in range(0, count, size):
        batch = {}
        for name, x in examples.items():
            x = x[start : start + size]
            widths = [(0, size - len(x))] + [(0, extra_tokens)] * (x.ndim - 1)
            batch[name] = jnp.asarray(np.pad(x, widths))
        out.append(batch)
    return out


def dense_ggn(problem, params, batches):
    """Σ Jᵀ H_out J over the batches divided by Σ w, by explicit Jacobians."""
    pairs = [_ggn_and_weight(problem, params, batch) for batch in batches]
    return np.asarray(sum(ggn for ggn, _ in pairs) / sum(weight for _, weight in pairs))


@functools.partial(jax.jit, static_argnums=0)
def _ggn_and_weight(problem, params, batch):
    flat, unravel = ravel_pytree(params)
    out = problem.outputs(params, batch)
    jacobian = jax.jacfwd(lambda v: problem.outputs(unravel(v), batch).ravel())(flat)
    hessian = jax.hessian(lambda o: jnp.sum(problem.loss(o.reshape(out.shape), batch)[0]))
    ggn = jacobian.T @ hessian(out.ravel()) @ jacobian
    return ggn, jnp.sum(problem.example_loss(params, batch)[1])


@functools.partial(jax.jit, static_argnums=0)
def example_gradients(problem, params, batch):
    """∇ℓ(x) for each row as [B, P], and w_B; by reverse mode, one example at a time."""

    def one(row):
        single = jax.tree.map(lambda x: x[None], row)
        gradient = jax.grad(lambda p: jnp.sum(problem.example_loss(p, single)[0]))(params)
        return ravel_pytree(gradient)[0], problem.example_loss(params, single)[1][0]

    return jax.lax.map(one, batch)


def all_gradients(problem, params, batches):
    pairs = [example_gradients(problem, params, batch) for batch in batches]
    return np.concatenate([g for g, _ in pairs]), np.concatenate([w for _, w in pairs])


PROBLEM = Problem(outputs, loss, sample_labels, taps=TAPS)


@pytest.fixture
def tiny():
    """Everything above under one name."""
    return SimpleNamespace(
        problem=PROBLEM,
        ridged=Problem(outputs, loss, sample_labels, ridge, TAPS),
        untapped=Problem(outputs, loss, sample_labels),
        taps=TAPS,
        perturbed=perturbed,
        zeros=zeros,
        outputs=outputs,
        loss=loss,
        sample_labels=sample_labels,
        params=init(),
        init=init,
        examples=make_examples,
        batches=make_batches,
        dense_ggn=dense_ggn,
        gradients=all_gradients,
    )
