"""Bytes of one device in every phase, by class and by formula.

Of a matrix each device has 1/(fsdp · tensor), of the rows 1/(replica · fsdp). One block at a time
has its parameters gathered and everything that its backward pass needs at hand.
"""

import math
from typing import NamedTuple

from ideal_jax.influence import metagradient, needs_of
from ideal_jax.runs import cost
from ideal_jax.runs.planning import layers
from ideal_jax.runs.planning.setting import WIDE_BYTES, Amounts, Setting

# What is left of a device's memory for a program: runtime and compiler keep the rest.
USABLE = 0.93
# Copies of all logits while the loss of labels drawn from them is differentiated. Accelerators'
# compilers draw and normalise without writing them again; as compiled, 2 at most on TPUs.
_LOGITS = {"tpu": 3, "gpu": 3, "cpu": 6}

Bytes = dict[str, float]  # of one device, by class


class Room(NamedTuple):
    """Whether something fits.

    Attributes:
      needed: bytes of the largest phase, on one device.
      usable: bytes of a device.
      phase: the one that needs most.
    """

    needed: float
    usable: float
    phase: str

    @property
    def fits(self) -> bool:
        """Does it?"""
        return self.needed <= self.usable


def room(s: Setting, by_phase: dict[str, Bytes]) -> Room:
    """What the phases need and what there is."""
    phase = max(by_phase, key=lambda name: sum(by_phase[name].values()))
    return Room(sum(by_phase[phase].values()), USABLE * s.topology.chip.hbm_bytes, phase)


def memory(s: Setting, amounts: Amounts) -> dict[str, Bytes]:
    """Every phase's bytes."""
    train = train_memory(s)
    found: dict[str, Bytes] = {}
    if amounts.updates:
        found |= _influence(s, amounts)
    if amounts.prompts:
        found["generate"] = _generation(s, amounts)
    # The state of a training stays until its round is over.
    held = {"optimizer": train["optimizer"]}
    return {"train": train} | {name: phase | held for name, phase in found.items()}


def train_memory(s: Setting) -> Bytes:
    """One training step."""
    shards = s.fsdp * s.tensor
    trained = layers.trained_scalars(s.cfg) / shards
    tokens = s.rows * s.length
    accumulated = 2 if s.micro_batches > 1 else 1
    return {
        "params": _params(s),
        "optimizer": trained * (s.moment_bytes + s.param_bytes),
        "gradients": accumulated * trained * s.param_bytes,
        "activations": _activations(s, tokens),
        "gathered": _gathered(s, gradients=s.cfg.lora is None),
        # The loss has been differentiated before the first block is.
        "at work": max(1.5 * tokens * _tape(s), _logits(s, s.rows * min(s.block, s.length), 3)),
    }


def _activations(s: Setting, tokens: float) -> float:
    """Bytes that all blocks keep of ``tokens`` tokens; and the logits, if none are recomputed."""
    logits = _logits(s, tokens, 1) if s.cfg.remat == "none" else 0.0
    return s.cfg.n_layers * tokens * saved(s) + logits


def saved(s: Setting) -> float:
    """Bytes that a block keeps of a token for its backward pass."""
    c, width = s.cfg, s.activation_bytes
    if c.remat == "none":
        return _tape(s)
    if c.remat == "offload":
        return 0.0
    kept = float(c.d_model)
    if c.remat == "dots":
        heads = (2 * c.n_heads + 2 * c.n_kv_heads) * c.head_dim
        kept += c.d_model + (heads + 2 * c.d_ff) / s.tensor
    return kept * width


def _tape(s: Setting, *, fused: bool | None = None) -> float:
    """Bytes that a block's backward pass needs of a token when nothing is computed again."""
    c, width = s.cfg, s.activation_bytes
    split = (2 * c.n_heads + 3 * c.n_kv_heads) * c.head_dim + 4 * c.d_ff
    norms = 2 * c.d_model * (2 * WIDE_BYTES + width)
    scores = 0.0
    if not (s.fused if fused is None else fused):
        scores = c.n_heads * s.length * (WIDE_BYTES + width) / s.tensor
    return norms + split * width / s.tensor + scores


def _logits(s: Setting, positions: float, copies: int) -> float:
    return copies * positions * s.cfg.padded_vocab * WIDE_BYTES / s.tensor


def _params(s: Setting) -> float:
    held = layers.whole_scalars(s.cfg)
    if s.cfg.lora is not None:
        held += layers.trained_scalars(s.cfg)
    return held * s.param_bytes / (s.fsdp * s.tensor)


def _gathered(s: Setting, *, gradients: bool) -> float:
    """Two blocks (one at work, one on its way) and the output matrix, in the activations' dtype."""
    block = layers.layer_scalars(s.cfg) * s.activation_bytes / s.tensor
    last = s.cfg.d_model * s.cfg.padded_vocab * s.activation_bytes / s.tensor
    split = s.fsdp > 1 or s.param_bytes != s.activation_bytes
    return (2 * block + last) * split + (block + last) * (gradients and s.fsdp > 1)


def _replay(s: Setting, a: Amounts) -> Bytes:
    """The metagradient: a training step with states beside it, and what moves with each."""
    train, mode = train_memory(s), s.influence.replay
    trained = layers.trained_scalars(s.cfg) / (s.fsdp * s.tensor)
    states = metagradient.states(mode, a.steps, a.domains, a.domains)
    held = states * trained * (2 * s.param_bytes + s.moment_bytes)
    return {**train, "vectors": held, "at work": (1 + a.domains) * train["at work"]}


def _influence(s: Setting, a: Amounts) -> dict[str, Bytes]:
    needs = needs_of(s.influence.estimator)
    if needs.run:
        return {"replay": _replay(s, a)}
    tokens, shards = s.influence_rows * s.length, s.fsdp * s.tensor
    kept = layers.kept_scalars(s.cfg, s.influence) / shards * WIDE_BYTES
    # Attention without a fused kernel takes a piece of the queries at a time, and so does the loss.
    wide = tokens * _tape(s, fused=True)
    logits = _logits(s, s.influence_rows * min(s.block, s.length), 1)
    params = _params(s)
    found: dict[str, Bytes] = {
        "gradient": {
            "params": params,
            # Those of the domains before the last are held until they are mixed.
            "gradients": (a.domains + 1) * kept,
            "activations": _activations(s, tokens),
            "gathered": _gathered(s, gradients=True),
            "at work": max(1.5 * wide, 3 * logits),
        }
    }
    if needs.kronecker:
        found |= _curvature(s, a, kept)
    if needs.squares(s.influence.uncovered):
        matrices = layers.factored(s.cfg, s.influence.layers, s.influence.max_factor)
        covered = 0 if needs.diagonal == "all" else sum(m.scalars for m in matrices)
        squared = max(layers.trained_scalars(s.cfg) - covered, 0) / shards * WIDE_BYTES
        found["diagonal"] = {
            "params": params,
            "curvature": 2 * squared,
            "gradients": s.influence_rows * squared,  # of every example
            "activations": _activations(s, tokens),
            "gathered": _gathered(s, gradients=False),
            "at work": max(1.5 * wide, 3 * logits),
        }
    if needs.product:
        found["product"] = {
            "params": params,
            # Five stacks of conjugate gradients beside the domains' gradients.
            "vectors": (5 * a.tangents + a.domains) * kept,
            "curvature": found["solve"]["curvature"],
            "activations": _activations(s, tokens),
            "gathered": _gathered(s, gradients=True),
            "at work": (1 + a.tangents) * max(1.5 * wide, 3 * logits),
        }
    # One tangent is scored in forward mode, several in reverse, gathered one at a time.
    saved: Bytes = {}
    if a.tangents > 1:
        saved = {"activations": _activations(s, tokens)}
    found["score"] = {
        "params": params,
        # Solutions, and what the references' side has not solved for yet.
        "vectors": a.domains * kept,
        "curvature": found.get("solve", {}).get("curvature", 0.0),
        **saved,
        "gathered": 2 * _gathered(s, gradients=False),
        "at work": max(1.5 * wide, 3 * logits),
    }
    return found


def _curvature(s: Setting, a: Amounts, kept: float) -> dict[str, Bytes]:
    """Factors, their eigenvectors and eigenvalues; groups of layers are fitted one by one."""
    matrices = layers.factored(s.cfg, s.influence.layers, s.influence.max_factor)
    groups = s.influence.layer_groups
    squares = sum(m.layers * width * block for m in matrices for width, block in m.sides)
    spread = squares * WIDE_BYTES / s.topology.devices
    kernels = sum(m.scalars for m in matrices) * WIDE_BYTES / (s.fsdp * s.tensor)
    done = (spread + kernels) * (1 - 1 / groups)
    moments = max(width * block for m in matrices for width, block in m.sides)
    gradients = s.influence_rows * max(m.inputs * m.outputs for m in matrices)
    largest = max(block for m in matrices for _, block in m.sides)
    needs = needs_of(s.influence.estimator)
    refit: dict[str, Bytes] = {}
    if needs.kronecker > 1 or needs.batch_gradients:
        refit["refit"] = {
            **_tapped(s, 2 * gradients),
            "curvature": done + (spread + 2 * kernels) / groups,
        }
    return {
        "curvature": {**_tapped(s, moments), "curvature": done + 2 * spread / groups},
        "eigen": {
            "params": _params(s),
            "curvature": done + (4 * spread + kernels) / groups,
            "at work": 8.0 * largest**2 * WIDE_BYTES,
        },
        **refit,
        "solve": {
            "params": _params(s),
            # The domains' gradients and their mixtures; then these and a chunk of solutions.
            "vectors": 2 * a.domains * kept,
            "curvature": spread + kernels,
            "at work": WIDE_BYTES
            * max(_rotation(m, a.tangents, s.topology.devices) for m in matrices),
        },
    }


def _rotation(m: cost.Matrix, vectors: int, devices: int) -> float:
    """Scalars at work in a layer's eigenbasis: its eigenvectors and those that are on their way,
    vectors, and on a mesh all layers' of this kernel before and after they change hands."""
    gathered = 2 * m.basis * (devices > 1)
    return gathered + (3 + 2 * m.layers * (devices > 1)) * vectors * m.inputs * m.outputs / devices


def _tapped(s: Setting, formed: float) -> Bytes:
    """A pass that keeps what training's does, and forms so many numbers at one layer. It has all
    logits while it differentiates the loss of the model's labels."""
    tokens = s.influence_rows * s.length
    logits = _logits(s, tokens, _LOGITS[s.topology.platform])
    return {
        "params": _params(s),
        "activations": _activations(s, tokens),
        "gathered": _gathered(s, gradients=False),
        "at work": max(1.5 * tokens * _tape(s) + formed * WIDE_BYTES / s.tensor, logits),
    }


def _generation(s: Setting, a: Amounts) -> Bytes:
    rows, prompt = math.ceil(s.eval_batch / s.ways), s.length  # the longest there may be
    heads = 2 * s.cfg.n_kv_heads * s.cfg.head_dim * s.activation_bytes / s.tensor
    # Adapters are merged into a copy, and a tied output matrix is transposed.
    copied = layers.whole_scalars(s.cfg) * (s.cfg.lora is not None)
    copied += s.cfg.d_model * s.cfg.padded_vocab * s.cfg.tie_embeddings
    return {
        "params": _params(s) + copied * s.param_bytes / (s.fsdp * s.tensor),
        "cache": rows * (prompt + a.new_tokens) * s.cfg.n_layers * heads,
        "gathered": _gathered(s, gradients=False),
        "at work": rows * prompt * _tape(s),
    }
