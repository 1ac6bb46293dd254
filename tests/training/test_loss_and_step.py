"""Loss, accumulation, optimizer: small cases worked out another way."""

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import FrozenConfigDict

from ideal_jax import training
from ideal_jax.errors import UserError
from ideal_jax.models import Decoder, DecoderConfig, decoder_loss, example_losses
from ideal_jax.models.loss import blocked_nll
from ideal_jax.training import loop
from ideal_jax.training.step import accumulate

CFG = DecoderConfig(
    vocab_size=50, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24
)
OPTIONS = FrozenConfigDict(
    {
        "learning_rate": 0.01,
        "warmup": 0.1,
        "schedule": "cosine",
        "final_learning_rate": 0.1,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.99,
        "epsilon": 1e-8,
        "clip_norm": 1.0,
        "moment_dtype": "",
    }
)


@pytest.fixture(scope="module")
def model_and_params():
    model = Decoder(CFG)
    return model, compiled.init(model)


def make_batch(rows=4, length=10, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, (rows, length + 1))
    segments = np.ones((rows, length), np.int32)
    segments[0, 6:] = 0
    weights = (rng.random((rows, length)) < 0.6) * segments
    return {
        "tokens": jnp.asarray(tokens[:, :-1], jnp.int32),
        "targets": jnp.asarray(tokens[:, 1:], jnp.int32),
        "weights": jnp.asarray(weights, jnp.float32),
        "segments": jnp.asarray(segments),
        "positions": jnp.broadcast_to(jnp.arange(length), (rows, length)),
    }


@pytest.mark.parametrize("block", [1, 3, 4, 10, 64])
def test_blocked_loss_and_its_derivatives_equal_the_plain_ones(block):
    h, head = jax.random.normal(jax.random.key(0), (2, 10, 16)), jnp.ones((16, 64)) * 0.1
    head = head + jax.random.normal(jax.random.key(1), head.shape)
    targets = jax.random.randint(jax.random.key(2), (2, 10), 0, 50)

    def blocked(h, head):
        return jnp.sum(jnp.sin(blocked_nll(h, head, targets, 50, block)))

    def plain(h, head):
        logp = jax.nn.log_softmax((h @ head)[..., :50])
        return jnp.sum(jnp.sin(-jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]))

    np.testing.assert_allclose(blocked(h, head), plain(h, head), rtol=1e-5)
    tangent = (jnp.cos(h), jnp.sin(head))
    for mine, theirs in (
        (jax.grad(blocked, (0, 1))(h, head), jax.grad(plain, (0, 1))(h, head)),
        (jax.jvp(blocked, (h, head), tangent)[1], jax.jvp(plain, (h, head), tangent)[1]),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, theirs
        )


def test_padding_and_prompts_do_not_count(model_and_params):
    model, params = model_and_params
    loss = decoder_loss(model)
    batch = make_batch()
    total, weight = loss(params, batch)
    assert weight == batch["weights"].sum()
    scrambled = {**batch, "targets": jnp.where(batch["weights"] > 0, batch["targets"], 7)}
    assert loss(params, scrambled)[0] == total


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulated_gradients_equal_whole_ones_for_uneven_token_counts(
    model_and_params, micro_batches
):
    model, params = model_and_params
    loss = decoder_loss(model)
    batch = make_batch()
    whole = accumulate(loss, params, batch, 1)
    slices = accumulate(loss, params, batch, micro_batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, slices)


def test_example_losses_sum_to_the_loss(model_and_params):
    model, params = model_and_params
    batch = make_batch()
    per_example, weights = example_losses(model)(params, batch)
    total, weight = decoder_loss(model)(params, batch)
    np.testing.assert_allclose(per_example.sum(), total, rtol=1e-6)
    assert weights.sum() == weight


def test_loss_falls(model_and_params):
    model, params = model_and_params
    optimizer = training.adamw(OPTIONS, 30)
    step = jax.jit(training.make_train_step(decoder_loss(model), optimizer))
    state, batch, losses = training.init_state(params, optimizer), make_batch(), []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 30
    assert int(metrics.tokens) == 36
    assert int(metrics.supervised_tokens) == int((batch["weights"] > 0).sum())


def test_a_batch_without_supervised_tokens_changes_nothing_to_nan(model_and_params):
    model, params = model_and_params
    optimizer = training.adamw(OPTIONS, 3)
    step = training.make_train_step(decoder_loss(model), optimizer)
    batch = {**make_batch(), "weights": jnp.zeros((4, 10))}
    state, metrics = jax.jit(step)(training.init_state(params, optimizer), batch)
    assert metrics.loss == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_schedule_warms_up_and_decays():
    rate = training.schedule(OPTIONS, 100)
    values = [float(rate(step)) for step in range(100)]
    assert values[0] == pytest.approx(0.001)
    assert max(values) == pytest.approx(0.01)
    assert int(np.argmax(values)) in (9, 10)
    assert values[-1] == pytest.approx(0.001, rel=0.02)
    with pytest.raises(UserError, match=r"training\.schedule"):
        training.schedule(FrozenConfigDict({**OPTIONS.to_dict(), "schedule": "cubic"}), 10)


def test_decay_touches_matrices_only(model_and_params):
    _, params = model_and_params
    options = FrozenConfigDict({**OPTIONS.to_dict(), "weight_decay": 0.5})
    optimizer = training.adamw(options, 3)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), optax.tree_utils.tree_cast(updates, None))
    assert moved["layers"]["mlp"]["up"]["kernel"]
    assert moved["embedding"]
    assert not moved["final_norm"]["scale"]
    assert not moved["layers"]["mlp_norm"]["scale"]


def test_a_step_changes_no_dtype(model_and_params):
    model, params = model_and_params
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    optimizer = training.adamw(OPTIONS, 10)
    state = training.init_state(narrow, optimizer)
    step = training.make_train_step(decoder_loss(model, 4), optimizer)
    after, _ = jax.eval_shape(step, state, make_batch())
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]


@pytest.mark.parametrize(("key", "what"), [("loss", "loss"), ("grad_norm", "gradient")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_named(key, what, value):
    """The last step's loss is fine; what its update does is seen in its gradient alone."""
    metrics = loop.StepMetrics(*np.float32([2.0, 1.0, 3, 3]), np.bool_(False))
    done = loop.Future()
    done.set_result(0.0)
    sent = loop._Sent(37, metrics, 3, (0.0, 0.0, 0.0), done)
    assert loop._values(sent, "round 1", "training")["loss"] == 2.0
    broken = sent._replace(metrics=metrics._replace(**{key: value}))
    told = rf"round 1: the {what} is not finite .* at step 37: .* lower training\.learning_rate"
    with pytest.raises(UserError, match=told):
        loop._values(broken, "round 1", "training")
