"""FLOPs by formula, so that they do not depend on the machine or on a restart.

Matrix products only, 2 FLOPs per multiply-add; attention counts full T×T scores as computed.
Forward = 2·P_matrix + 4·L·T·N·H per token; backward = 2 × forward (Kaplan et al., arXiv 2001.08361,
appendix; Chowdhery et al., arXiv 2204.02311, appendix B).
"""

from ideal_jax.models import DecoderConfig


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
