"""FLOPs by formula, so that they do not depend on the machine or on a restart.

Matrix products only, 2 FLOPs per multiply-add; attention counts full T×T scores as computed.
Forward = 2·P_matrix + 4·L·T·N·H per token; backward = 2 × forward (Kaplan et al., arXiv 2001.08361,
appendix; Chowdhery et al., arXiv 2204.02311, appendix B).
"""

from ideal_jax.mixture import InfluenceMatrix
from ideal_jax.models import DecoderConfig

# Passes (forward and backward) over the curvature examples that an estimator is fitted with.
_FITTING = {
    "identity": 0,
    "adam": 0,
    "fisher_diag": 1,
    "kfac": 2,
    "ekfac": 3,
    "ggn_cg": 3,
    "hessian_cg": 3,
    "official": 2,
}
# Forward passes that one product of its curvature with one vector costs.
_PRODUCT = {"ggn_cg": 4, "hessian_cg": 6}


def forward_flops(cfg: DecoderConfig, tokens: float, length: float) -> float:
    """FLOPs of one forward pass over ``tokens`` tokens (padding included) in rows of ``length``."""
    attention = cfg.d_model * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)
    matrices = cfg.n_layers * (attention + 3 * cfg.d_model * cfg.d_ff)
    matrices += cfg.d_model * cfg.padded_vocab
    scores = 2 * cfg.n_layers * length * cfg.n_heads * cfg.head_dim
    return 2.0 * tokens * (matrices + scores)


def train_flops(cfg: DecoderConfig, tokens: float, length: float) -> float:
    """FLOPs of training on ``tokens`` tokens: forward, and a backward of twice that."""
    return 3.0 * forward_flops(cfg, tokens, length)


def influence_flops(
    cfg: DecoderConfig,
    length: float,
    matrix: InfluenceMatrix,
    *,
    scored: float,
    held: float,
    curved: float,
    products: int,
    probes: int,
) -> float:
    """FLOPs of one influence matrix; a tangent of a jvp costs two forward passes.

    Args:
      cfg, length: as of ``forward_flops``.
      matrix: what came out; its estimator and size count.
      scored, held, curved: tokens of training examples, of reference examples and of those the
        curvature is taken over, padding included.
      products: of conjugate gradients, for each side.
      probes: products that look for the smallest eigenvalue ("hessian_cg").
    """
    R, n = matrix.matrix.shape
    forwards = scored * (3.0 + 1 + 2 * R) + held * (3.0 + 1 + 2 * n)
    forwards += curved * 3.0 * _FITTING[matrix.estimator]
    if matrix.estimator in _PRODUCT:
        vectors = (products + 1) * (R + n) + (probes if matrix.estimator == "hessian_cg" else 0)
        forwards += curved * _PRODUCT[matrix.estimator] * vectors
    return forward_flops(cfg, forwards, length)
