"""FLOPs by formula, so that they do not depend on the machine or on a restart.

Matrix products only, 2 FLOPs per multiply-add; attention counts full T×T scores as computed.
Forward = 2·P_matrix + 4·L·T·N·H per token; backward = 2 × forward (Kaplan et al., arXiv 2001.08361,
appendix; Chowdhery et al., arXiv 2204.02311, appendix B).
"""

from collections.abc import Sequence
from typing import NamedTuple

from ideal_jax.models import DecoderConfig

# Kronecker-factored passes over the curvature examples: factors; factors and eigenvalues.
_KRONECKER = {"kfac": 1, "official": 2, "ekfac": 2, "ggn_cg": 2, "hessian_cg": 2}
_DIAGONAL = ("fisher_diag", "kfac", "ekfac", "ggn_cg", "hessian_cg")
# Forward passes that one product of its curvature with one vector costs.
_PRODUCT = {"ggn_cg": 4, "hessian_cg": 6}


class Matrix(NamedTuple):
    """A dense layer with Kronecker factors: L layers of I×O."""

    layers: int
    inputs: int
    outputs: int


def forward_flops(cfg: DecoderConfig, tokens: float, length: float) -> float:
    """FLOPs of one forward pass over ``tokens`` tokens (padding included) in rows of ``length``."""
    attention = cfg.d_model * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)
    matrices = cfg.n_layers * (attention + 3 * cfg.d_model * cfg.d_ff)
    matrices += cfg.d_model * cfg.padded_vocab
    scores = 2 * cfg.n_layers * length * cfg.n_heads * cfg.head_dim
    return 2.0 * tokens * (matrices + scores)


def train_flops(cfg: DecoderConfig, tokens: float, length: float) -> float:
    """FLOPs of training on tokens, or of a gradient: forward, and a backward of twice that.

    Where only adapters are trained, the backward is through activations alone: as much again.
    """
    return (3.0 if cfg.lora is None else 2.0) * forward_flops(cfg, tokens, length)


def model_flops(cfg: DecoderConfig, tokens: float, length: float) -> float:
    """FLOPs of training on tokens (padding included) as MFU counts them.

    Of attention only what causality leaves: a token sees (length + 1)/2 on average. Sliding windows
    and the bounds of packed examples are not discounted, and nothing that is recomputed counts.
    """
    return train_flops(cfg, tokens, (length + 1) / 2)


def curvature_flops(
    cfg: DecoderConfig,
    length: float,
    estimator: str,
    tokens: float,
    matrices: Sequence[Matrix],
    vectors: float,
) -> float:
    """FLOPs of fitting a curvature to ``tokens`` tokens and of its products with ``vectors``.

    A pass for factors is a forward and a backward through the activations alone (as much again),
    and the second moments of inputs and output gradients; one for eigenvalues rotates these and
    forms each example's gradient; one for the diagonal is a forward and a backward. An
    eigendecomposition of b×b counts 9 b³ (Golub and Van Loan, 4th ed., §8.3).
    """
    forwards = tokens * _PRODUCT.get(estimator, 0) * vectors
    forwards += tokens * 3 * (estimator in _DIAGONAL)
    passes = _KRONECKER.get(estimator, 0)
    total = forward_flops(cfg, forwards + tokens * 2 * passes, length)
    for L, I, O in matrices if passes else ():  # noqa: E741
        total += L * (2.0 * tokens * passes * (I * I + O * O) + 9.0 * (I**3 + O**3))
        total += L * 2.0 * tokens * I * O * (passes - 1)
    return total


def score_flops(cfg: DecoderConfig, length: float, tokens: float, tangents: int) -> float:
    """FLOPs of derivatives of ``tokens`` tokens' losses: a tangent costs two forward passes."""
    return forward_flops(cfg, tokens * (1 + 2 * tangents), length)
