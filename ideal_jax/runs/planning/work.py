"""How much one device computes, reads and sends in every phase of a run, by formula.

FLOPs are counted as in ``runs.cost``: products of matrices, 2 per multiply-add. A fused attention
kernel skips what causality hides (half of the scores); XLA's attention computes all of them.
Collectives: bytes that a device receives, (n-1)/n of an array gathered or scattered over n.
"""

import math
from typing import NamedTuple

from ideal_jax.influence import metagradient, needs_of
from ideal_jax.runs import cost
from ideal_jax.runs.planning import layers
from ideal_jax.runs.planning.setting import WIDE_BYTES, Amounts, Setting

# Passes that products of float32 matrices take on a bf16 unit: TPUs split each factor in three and
# leave out the three smallest products; GPUs have another unit, a fifteenth as fast.
EXACT = {"tpu": 6.0, "gpu": 15.0, "cpu": 1.0}
# A block Jacobi method for large matrices on TPUs, 12 b³ in each of some ten sweeps; elsewhere the
# library's, counted as 9 b³.
_JACOBI = 120.0 / 9.0


class Work(NamedTuple):
    """Of one device in one execution of a program.

    Attributes:
      flops: of matrix products in the dtype of activations.
      exact_flops: of matrix products in float32.
      hbm_bytes: read and written.
      fsdp_bytes, tensor_bytes, replica_bytes: received over a mesh axis.
      executions: of the whole phase.
    """

    flops: float = 0.0
    exact_flops: float = 0.0
    hbm_bytes: float = 0.0
    fsdp_bytes: float = 0.0
    tensor_bytes: float = 0.0
    replica_bytes: float = 0.0
    executions: float = 1.0


def train_work(s: Setting, repeated: tuple[str, ...] | None = None) -> Work:
    """One training step.

    Args:
      repeated: parts of the forward pass that the backward computes again (``layers.REPEATED``), if
        not those of ``model.remat``.
    """
    parts = layers.REPEATED[s.cfg.remat] if repeated is None else repeated
    gradient = _pass(s, s.rows * s.length, seen(s), parts, gradients=True)
    trained = layers.trained_scalars(s.cfg) / (s.fsdp * s.tensor)
    update = trained * (3 * s.param_bytes + 2 * s.moment_bytes + 2 * s.param_bytes)
    between = 2 * _share(s.replica) * trained * s.param_bytes
    return Work(
        flops=s.micro_batches * gradient.flops,
        hbm_bytes=s.micro_batches * gradient.hbm_bytes + update,
        fsdp_bytes=s.micro_batches * gradient.fsdp_bytes,
        tensor_bytes=s.micro_batches * gradient.tensor_bytes,
        replica_bytes=between,
    )


def phases(s: Setting, a: Amounts) -> dict[str, Work]:
    """Every program of a whole run by its name, with how often it is executed."""
    found = {"train": train_work(s)._replace(executions=a.steps * a.trainings)}
    if a.updates:
        found |= _influence(s, a)
    if a.prompts:
        found["generate"] = _generation(s, a)
    return found


def _influence(s: Setting, a: Amounts) -> dict[str, Work]:
    needs = needs_of(s.influence.estimator)
    if needs.run:
        # A step of the replay counts as so many steps of training.
        replayed = a.updates * a.steps * metagradient.runs(s.influence.replay, a.domains, a.domains)
        return {"replay": train_work(s)._replace(executions=replayed)}
    each = s.influence_rows * s.length  # positions of a batch on a device

    def batches(tokens: float, sets: int) -> float:
        """Every set fills its own."""
        return a.updates * sets * math.ceil(tokens / sets / (each * s.ways))

    references, spread, scored = (
        batches(tokens, a.domains) for tokens in (a.references, a.spread, a.scored)
    )
    curvature = batches(a.curvature, 1)  # rows as wide as their example: few sets are padded
    found = {"gradient": _gradient(s, each)._replace(executions=references + scored)}
    found |= _fit(s, each, curvature, a.updates) | _solves(s, a, curvature)
    chunks = math.ceil(a.domains / a.tangents)
    found["score"] = _scores(s, a, each)._replace(executions=chunks * (spread + scored))
    return found


def _fit(s: Setting, each: float, batches: float, updates: int) -> dict[str, Work]:
    """The passes over the curvature examples, ``each`` tokens of a batch on a device."""
    needs, options = needs_of(s.influence.estimator), s.influence
    matrices = layers.factored(s.cfg, options.layers, options.max_factor)
    whole = cost.fit_flops(
        s.cfg, needs, options, cost.Examples(each * s.ways, s.length, 1), matrices
    )
    own = cost.fit_flops(s.cfg, needs, options, cost.Examples(each, s.length, 1), matrices)
    # Forward and backward through the activations alone, with the kernels of training.
    parts, gradient = layers.REPEATED[s.cfg.remat], _gradient(s, each)
    again = layers.repeated_flops(s.cfg, each, seen(s), parts) / s.tensor
    tapped = _flops(s, each, seen(s), 2.0) + again
    groups, split = options.layer_groups, _share(s.topology.devices) * WIDE_BYTES / s.tensor
    first, both = (cost.factor_flops(matrices, each * s.ways, s.length, n) for n in (1, 2))
    # Factors are added up over the devices; bases are gathered, and eigenvalues added up.
    bases = split * sum(m.layers * width * block for m in matrices for width, block in m.sides)
    kernels = split * sum(m.scalars for m in matrices)
    found: dict[str, Work] = {}
    fits = (("curvature", first, bases), ("refit", both - first, bases + kernels))
    for name, exact, exchanged in fits[: needs.kronecker]:
        found[name] = gradient._replace(
            flops=tapped,
            exact_flops=exact / s.topology.devices / groups,
            fsdp_bytes=2 * _whole_bytes(s) * _share(s.fsdp) + exchanged / groups,
            executions=batches * groups,
        )
    if needs.batch_gradients:
        rotated = cost.rotation_flops(matrices, 0.5) / s.topology.devices
        found["refit"] = gradient._replace(exact_flops=rotated, executions=batches)
    if needs.kronecker:
        slower = _JACOBI if s.topology.platform == "tpu" else 1.0
        eigen = slower * whole["eigen"] / s.topology.devices
        found["eigen"] = Work(exact_flops=eigen, executions=updates)
    if "diagonal" in own:
        flops = own["diagonal"] / s.tensor + again
        found["diagonal"] = gradient._replace(flops=flops, executions=batches)
    if "trace" in own:
        found["trace"] = _multiple(s, each, own["trace"])._replace(executions=batches)
    if "lanczos" in own:
        times = options.iterations
        found["lanczos"] = _multiple(s, each, own["lanczos"] / times, 1)._replace(
            executions=times * batches
        )
    return found


def _solves(s: Setting, a: Amounts, batches: float) -> dict[str, Work]:
    """Of both sides, ``a.tangents`` at a time; ``batches`` of curvature in all updates."""
    needs, options, devices = needs_of(s.influence.estimator), s.influence, s.topology.devices
    matrices = layers.factored(s.cfg, options.layers, options.max_factor)
    solves = 2 * math.ceil(a.domains / a.tangents)
    products = options.iterations + 1 if needs.product else 1
    found: dict[str, Work] = {}
    if needs.product:
        each = s.influence_rows * s.length
        one = cost.product_flops(s.cfg, needs, cost.Examples(each, s.length, 1), a.tangents)
        found["product"] = _multiple(s, each, one, a.tangents)._replace(
            executions=batches * solves * products
        )
    if needs.rotations:
        # Every kernel gathers its eigenvectors; three times its vectors change hands in a rotation:
        # on their way in and out, and between rows and columns there and back.
        eigenvectors = sum(m.layers * m.basis for m in matrices)
        vectors = 3 * needs.rotations * a.tangents * sum(m.scalars for m in matrices) / devices
        found["solve"] = Work(
            exact_flops=a.tangents * cost.rotation_flops(matrices, needs.rotations) / devices,
            fsdp_bytes=WIDE_BYTES * _share(devices) * (eigenvectors + vectors),
            executions=a.updates * solves * products,
        )
    return found


def _multiple(s: Setting, tokens: float, flops: float, vectors: int = 0) -> Work:
    """So many FLOPs of forward passes and their derivatives along ``vectors``."""
    forward = _pass(s, tokens, s.length, (), gradients=False)
    times = flops / s.tensor / forward.flops
    whole, met = layers.whole_scalars(s.cfg), layers.kept_scalars(s.cfg, s.influence)
    return Work(
        flops=flops / s.tensor,
        hbm_bytes=times * forward.hbm_bytes,
        fsdp_bytes=_received(s, 2 * whole + 2 * vectors * met),
        tensor_bytes=times * forward.tensor_bytes,
    )


def _gradient(s: Setting, tokens: float) -> Work:
    """Of what the estimator keeps."""
    parts, matrices = layers.REPEATED[s.cfg.remat], layers.kept_alone(s.cfg, s.influence)
    again = layers.repeated_flops(s.cfg, tokens, s.length, parts)
    gradient = cost.gradient_flops(s.cfg, s.length, tokens, matrices)
    scattered = layers.kept_scalars(s.cfg, s.influence) * (s.cfg.lora is None)
    return _pass(s, tokens, s.length, parts, gradients=True)._replace(
        flops=(gradient + again) / s.tensor,
        fsdp_bytes=_received(s, 2 * layers.whole_scalars(s.cfg) + scattered),
    )


def _scores(s: Setting, a: Amounts, tokens: float) -> Work:
    """Derivatives along tangents: one in forward mode, several in reverse."""
    matrices = layers.kept_alone(s.cfg, s.influence)
    score = cost.score_flops(
        s.cfg, s.length, tokens, a.tangents, packed=a.packed, matrices=matrices
    )
    # The tangents are gathered like the parameters that they meet; nothing is scattered.
    whole, met = layers.whole_scalars(s.cfg), layers.kept_scalars(s.cfg, s.influence)
    if a.tangents == 1:
        forward = _pass(s, tokens, s.length, (), gradients=False)
        return forward._replace(
            flops=score / s.tensor,
            hbm_bytes=3 * forward.hbm_bytes,
            fsdp_bytes=_received(s, whole + met),
            tensor_bytes=2 * forward.tensor_bytes,
        )
    parts = layers.REPEATED[s.cfg.remat]
    again = layers.repeated_flops(s.cfg, tokens, s.length, parts)
    return _pass(s, tokens, s.length, parts, gradients=True)._replace(
        flops=(score + again) / s.tensor,
        fsdp_bytes=_received(s, 2 * whole + a.tangents * met),
    )


def seen(s: Setting) -> float:
    """Positions whose scores training computes for a token, on average."""
    return (s.length + 1) / 2 if s.fused else s.length


def _flops(s: Setting, tokens: float, attended: float, forwards: float) -> float:
    return forwards * cost.forward_flops(s.cfg, tokens, attended) / s.tensor


def _received(s: Setting, scalars: float) -> float:
    """Bytes of so many scalars, in the dtype of activations, gathered or scattered over fsdp."""
    return scalars * s.activation_bytes / s.tensor * _share(s.fsdp)


def _whole_bytes(s: Setting) -> float:
    """Of all parameters, in the dtype of activations, that a device reads or gathers."""
    return layers.whole_scalars(s.cfg) * s.activation_bytes / s.tensor


def _pass(
    s: Setting, tokens: float, attended: float, parts: tuple[str, ...], *, gradients: bool
) -> Work:
    """A forward pass over ``tokens`` on a device's share of the mesh, and a backward pass."""
    cfg, width = s.cfg, s.activation_bytes
    forwards = cost.train_flops(cfg, 1, 1) / cost.forward_flops(cfg, 1, 1) if gradients else 1.0
    again = layers.repeated_flops(cfg, tokens, attended, parts) / s.tensor
    whole = _whole_bytes(s)
    reads = 2 if gradients else 1  # of all parameters, gathered
    scattered = cfg.lora is None and gradients
    recomputes = "o" in parts
    reduced = (2 + 2 * gradients + recomputes) * cfg.n_layers  # sums over ``tensor``
    values = tokens * cfg.n_layers * (8 * cfg.d_model + 4 * cfg.d_ff / s.tensor) * width
    return Work(
        flops=_flops(s, tokens, attended, forwards) + again * gradients,
        hbm_bytes=(reads + recomputes) * whole + values * (1 + 2 * gradients),
        fsdp_bytes=(reads + scattered) * whole * _share(s.fsdp),
        tensor_bytes=2 * reduced * tokens * cfg.d_model * width * _share(s.tensor),
    )


def _generation(s: Setting, a: Amounts) -> Work:
    """A new token for each of a batch; the prompt counts as so many forward passes."""
    rows = math.ceil(s.eval_batch / s.ways)
    one = _pass(s, rows, a.prompt_tokens + a.new_tokens, (), gradients=False)
    prompt = _flops(s, rows * a.prompt_tokens, a.prompt_tokens, 1.0) / a.new_tokens
    heads = 2 * s.cfg.n_kv_heads * s.cfg.head_dim * s.activation_bytes / s.tensor
    cache = rows * s.cfg.n_layers * (a.prompt_tokens + a.new_tokens) * heads
    batches = a.trainings * math.ceil(a.prompts / (rows * s.ways))
    return one._replace(
        flops=one.flops + prompt,
        hbm_bytes=one.hbm_bytes + cache,
        executions=batches * a.new_tokens,
    )


def _share(ways: int) -> float:
    return (ways - 1) / ways
