"""Every attention kernel against the reference: values, gradients, forward mode."""

import functools
import itertools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ideal_jax import config as config_lib
from ideal_jax.errors import UserError
from ideal_jax.models import Decoder, DecoderConfig, attention, choose_attention, kernels
from ideal_jax.models.attention import Places
from ideal_jax.models.splash import splash
from ideal_jax.runs.base_model import with_attention

ROOT = pathlib.Path(__file__).parents[2]
CFG = DecoderConfig(50, 16, 2, 4, 2, 16, 24, dtype="bfloat16")
CASES = {
    "plain": {},
    "window": {"windows": (0, 40)},
    "softcap": {"attention_softcap": 2.0},
    "mha": {"n_kv_heads": 4},
    "scale": {"attention_scale": 0.5},
}


def packed(B, T, padding=20):
    """Rows of three examples of unequal length and some padding."""
    segments, positions = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for b in range(B):
        bounds = [0, 30 + b, 2 * T // 3, T - padding]
        for n, (low, high) in enumerate(itertools.pairwise(bounds)):
            segments[b, low:high] = n + 1
            positions[b, low:high] = np.arange(high - low)
        positions[b, T - padding :] = np.arange(padding)
    return Places(jnp.asarray(positions), jnp.asarray(segments))


def queries_keys_values(cfg, B, T, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)
    return [
        jax.random.normal(key, (B, T, n, cfg.head_dim), jnp.dtype(dtype))
        for key, n in zip(keys, heads, strict=True)
    ]


def config(case, **changes):
    return DecoderConfig(**{**vars(CFG), **CASES[case], **changes})


def value_and_grads(attend, qkv, weights_BxT, compiled=True):
    """Of a sum over real tokens that no symmetry makes zero."""

    def total(*qkv):
        y = attend(*qkv)
        return jnp.sum(jnp.sin(y.astype(jnp.float32)) * weights_BxT[..., None, None]), y

    of = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    (_, y), grads = (jax.jit(of) if compiled else of)(*qkv)
    return y, grads


def check(mine, reference, qkv, places, tolerance, compiled=True):
    real = places.segments > 0
    ours, our_grads = value_and_grads(mine, qkv, real, compiled)
    theirs, their_grads = value_and_grads(reference, qkv, real)
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    close(ours[real], theirs[real])
    for ours, theirs in zip(our_grads, their_grads, strict=True):
        assert jnp.linalg.norm(theirs) > 1
        close(ours, theirs, atol=tolerance * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_splash_is_the_reference(case, layer):
    cfg, places = config(case), packed(2, 256)
    window = None
    if cfg.windows:
        window = jnp.asarray(cfg.windows[layer] or np.iinfo(np.int32).max, jnp.int32)
    how = {"scale": cfg.attention_scale or 0.25, "softcap": cfg.attention_softcap}

    def mine(q, k, v):
        args = (q, k, v, places.segments, window)
        return splash(*args, windows=cfg.windows, interpret=True, **how)

    def reference(q, k, v):
        return kernels.attend(cfg, "xla", q, k, v, places, places, window)

    check(mine, reference, queries_keys_values(cfg, 2, 256), places, 2e-5)


def test_splash_takes_rows_that_are_no_multiple_of_its_blocks():
    cfg, places = config("plain"), packed(1, 150)

    def mine(q, k, v):
        return splash(q, k, v, places.segments, scale=0.25, interpret=True)

    def reference(q, k, v):
        return kernels.attend(cfg, "xla", q, k, v, places, places, None)

    check(mine, reference, queries_keys_values(cfg, 1, 150), places, 2e-5)


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_blocked_is_the_reference_in_every_mode(case, dtype, short, monkeypatch):
    for name, size in {"BLOCK": 32, "_SHORT": 128 if short else 16, "_LONG_BLOCK": 32}.items():
        monkeypatch.setattr(attention, name, size)
    with jax.enable_x64(dtype == "float64"):
        cfg, places = config(case, dtype=dtype), packed(2, 100)
        window = jnp.asarray(40, jnp.int32) if cfg.windows else None
        qkv = queries_keys_values(cfg, 2, 100, dtype)
        tolerance = 1e-5 if dtype == "float32" else 1e-12

        def run(kernel):
            return lambda q, k, v: kernels.attend(cfg, kernel, q, k, v, places, places, window)

        check(run("blocked"), run("xla"), qkv, places, tolerance)
        tangents = queries_keys_values(cfg, 2, 100, dtype)[::-1]
        tangents = [jnp.resize(t, x.shape) for t, x in zip(tangents, qkv, strict=True)]

        @functools.partial(jax.jit, static_argnums=0)
        def forward(kernel, qkv, tangents):
            return jax.jvp(run(kernel), qkv, tangents)[1]

        ours, theirs = forward("blocked", qkv, tangents), forward("xla", qkv, tangents)
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=10 * tolerance)


def test_blocked_attention_takes_less_memory_in_both_modes():
    cfg, T = config("plain"), 4096
    places = Places(jnp.arange(T)[None], jnp.ones((1, T), jnp.int32))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in queries_keys_values(cfg, 1, T)]

    def temporaries(kernel, mode):
        def run(*qkv):
            return kernels.attend(cfg, kernel, *qkv, places, places, None)

        f = {
            "jvp": lambda *qkv: jax.jvp(run, qkv, qkv),
            "grad": jax.grad(lambda *qkv: jnp.sum(run(*qkv) ** 2), argnums=(0, 1, 2)),
        }[mode]
        return jax.jit(f).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    for mode in ("jvp", "grad"):
        assert temporaries("blocked", mode) < 0.25 * temporaries("xla", mode)


@pytest.mark.parametrize("case", ["plain", "window", "mha", "scale"])
def test_what_cudnn_is_asked_for_is_the_reference(case):
    cfg, places = config(case), packed(2, 100)
    window = jnp.asarray(40, jnp.int32) if cfg.windows else None
    scale = cfg.attention_scale or cfg.head_dim**-0.5

    def mine(q, k, v):
        how = {"scale": scale, "implementation": "xla"}
        return kernels.fused_on_gpu(q, k, v, places, window, **how)

    def reference(q, k, v):
        return kernels.attend(cfg, "xla", q, k, v, places, places, window)

    check(mine, reference, queries_keys_values(cfg, 2, 100), places, 1e-5)


def test_segments_have_lengths_and_starts():
    lengths, starts = kernels.segment_bounds(jnp.asarray([[1, 1, 2, 3, 0, 0], [0] * 6]), 5)
    assert lengths.tolist() == [[2, 1, 1, 2, -1], [6, -1, -1, -1, -1]]
    assert starts.tolist() == [[0, 2, 3, 4, -1, -1], [0, -1, -1, -1, -1, -1]]


def by_bounds(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
    """What cuDNN computes, each segment by itself from its length and start alone."""
    assert mask_type == kernels.cudnn.MaskType.PADDING_CAUSAL
    assert q_seqlen is kv_seqlen
    assert q_offsets is kv_offsets
    y = jnp.full(q.shape, jnp.nan)
    alone = jax.jit(functools.partial(jax.nn.dot_product_attention, is_causal=True))
    for b, (lengths, starts) in enumerate(zip(q_seqlen.tolist(), q_offsets.tolist(), strict=True)):
        for length, start in zip(lengths, starts[:-1], strict=True):
            if length < 0:
                assert start == -1
                continue
            at = (slice(b, b + 1), slice(start, start + length))
            y = y.at[at].set(alone(q[at], k[at], v[at], scale=scale))
    return y


@pytest.mark.parametrize("max_segments", [4, 9])
@pytest.mark.parametrize("case", ["plain", "mha", "scale"])
def test_what_cudnn_is_asked_for_by_segment_is_the_reference(case, max_segments, monkeypatch):
    cfg, places = config(case, max_segments=max_segments), packed(2, 100)
    monkeypatch.setattr(kernels.cudnn, "dot_product_attention", by_bounds)

    def mine(q, k, v):
        return kernels.attend(cfg, "cudnn", q, k, v, places, places, None)

    def reference(q, k, v):
        return kernels.attend(cfg, "xla", q, k, v, places, places, None)

    # ``by_bounds`` reads the bounds it is given.
    check(mine, reference, queries_keys_values(cfg, 2, 100), places, 1e-5, compiled=False)


@pytest.mark.skipif(
    jax.default_backend() != "gpu",
    reason="cuDNN's own kernels run on NVIDIA GPUs only; what they are asked for is tested above",
)
@pytest.mark.parametrize("max_segments", [0, 4, 9])
@pytest.mark.parametrize("case", ["plain", "window", "mha", "scale"])
def test_cudnn_itself_is_the_reference(case, max_segments):
    cfg, places = config(case, head_dim=64, max_segments=max_segments), packed(2, 256)
    window = jnp.asarray(40, jnp.int32) if cfg.windows else None

    def mine(*qkv):
        return kernels.attend(cfg, "cudnn", *qkv, places, places, window)

    def reference(*qkv):
        wide = (x.astype(jnp.float32) for x in qkv)
        return kernels.attend(cfg, "xla", *wide, places, places, window)

    check(mine, reference, queries_keys_values(cfg, 2, 256, "bfloat16"), places, 2e-2)


@pytest.mark.parametrize(
    ("platform", "row_length", "changes", "kernel"),
    [
        ("tpu", 4096, {}, "splash"),
        ("tpu", 4096, {"attention_softcap": 50.0}, "splash"),
        ("tpu", 4000, {}, "blocked"),
        ("tpu", 64, {}, "xla"),
        ("gpu", 4096, {}, "cudnn"),
        ("gpu", 4096, {"attention_softcap": 50.0}, "blocked"),
        ("gpu", 512, {"dtype": "float32"}, "blocked"),
        ("cpu", 128, {}, "xla"),
        ("cpu", 2048, {}, "blocked"),
    ],
)
def test_auto_takes_the_platforms_kernel_where_it_can(platform, row_length, changes, kernel):
    cfg = config("plain", **changes)
    found = choose_attention("auto", cfg, platform=platform, row_length=row_length)
    assert found == kernel


@pytest.mark.parametrize(
    ("asked", "platform", "row_length", "changes", "told"),
    [
        ("flash", "cpu", 64, {}, "'flash' is not one of auto, xla, blocked, splash, cudnn"),
        ("splash", "cpu", 128, {}, "splash needs a TPU, not cpu; use model.attention=auto"),
        ("splash", "tpu", 1000, {}, "a multiple of 128, not 1000"),
        ("splash", "tpu", 1024, {"n_kv_heads": 1}, r"key heads \(1\) that mesh.tensor=2 divides"),
        ("splash", "tpu", 1024, {"dtype": "float64"}, "not model.dtype=float64"),
        ("cudnn", "tpu", 1024, {}, "cudnn needs a GPU, not tpu"),
        ("cudnn", "gpu", 1024, {"dtype": "float32"}, "needs model.dtype=bfloat16, not float32"),
        ("cudnn", "gpu", 1024, {"attention_softcap": 9.0}, "has no soft-cap"),
        ("cudnn", "gpu", 1024, {"head_dim": 12}, "not 12"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(asked, platform, row_length, changes, told):
    cfg = config("plain", **changes)
    with pytest.raises(UserError, match=told):
        choose_attention(asked, cfg, platform=platform, row_length=row_length, tensor=2)


@pytest.mark.parametrize(
    ("platform", "capability", "most"),
    [("gpu", "9.0", 33), ("gpu", "8.0", 0), ("gpu", "gfx942", 0), ("tpu", None, 0)],
)
def test_only_hopper_and_later_are_told_how_many_segments_there_are(platform, capability, most):
    class Device:
        pass

    device, cfg = Device(), config("plain", head_dim=64)
    device.platform = platform
    if capability:
        device.compute_capability = capability
    wanted = config_lib.load(ROOT / "configs" / "large.py")
    if capability == "gfx942":
        wanted.model.attention = "blocked"
    mesh = types.SimpleNamespace(devices=np.array([device]), shape={"tensor": 1})
    assert with_attention(wanted, Decoder(cfg), mesh).cfg.max_segments == most
