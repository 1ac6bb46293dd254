"""FLOPs by formula, so that they do not depend on the machine or on a restart.

Matrix products only, 2 FLOPs per multiply-add; attention counts full T×T scores, whatever a
kernel leaves out.
Forward = 2·P_matrix + 4·L·T·N·H per token; backward = 2 × forward (Kaplan et al., arXiv 2001.08361,
appendix; Chowdhery et al., arXiv 2204.02311, appendix B).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ideal_jax.models import DecoderConfig

# Kronecker-factored passes over the curvature examples: factors; factors and eigenvalues.
KRONECKER = {"kfac": 1, "official": 2, "ekfac": 2, "ggn_cg": 2, "hessian_cg": 2}
_DIAGONAL = ("fisher_diag", "kfac", "ekfac", "ggn_cg", "hessian_cg")
# Forward passes that one product of its curvature with one vector costs.
_PRODUCT = {"ggn_cg": 4, "hessian_cg": 6}


class Matrix(NamedTuple):
    """A dense layer with Kronecker factors: L layers of I×O.

    Attributes:
      blocks: widths of the equal diagonal blocks of its two factors.
      owns_input: no other layer has computed the factor of its inputs.
    """

    layers: int
    inputs: int
    outputs: int
    blocks: tuple[int, int]
    owns_input: bool = True

    @property
    def scalars(self) -> int:
        """L·I·O."""
        return self.layers * self.inputs * self.outputs

    @property
    def basis(self) -> int:
        """Scalars of one layer's eigenvectors."""
        return self.inputs * self.blocks[0] + self.outputs * self.blocks[1]

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(width, width of its blocks) of the factors that are computed for this layer."""
        both = [(self.inputs, self.blocks[0]), (self.outputs, self.blocks[1])]
        return both if self.owns_input else both[1:]


def dense_layers(cfg: DecoderConfig) -> dict[str, tuple[int, int]]:
    """(I, O) of a block's matrices by their path."""
    D, N, K, F = cfg.d_model, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim, cfg.d_ff
    return {
        "layers/attention/q": (D, N),
        "layers/attention/k": (D, K),
        "layers/attention/v": (D, K),
        "layers/attention/o": (N, D),
        "layers/mlp/gate": (D, F),
        "layers/mlp/up": (D, F),
        "layers/mlp/down": (F, D),
    }


def forward_flops(cfg: DecoderConfig, tokens: float, length: float) -> float:
    """FLOPs of one forward pass over ``tokens`` tokens (padding included) in rows of ``length``."""
    matrices = cfg.n_layers * sum(i * o for i, o in dense_layers(cfg).values())
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
    and ``factor_flops``; one for the diagonal is a forward and a backward.
    """
    forwards = tokens * _PRODUCT.get(estimator, 0) * vectors
    forwards += tokens * 3 * (estimator in _DIAGONAL)
    passes = KRONECKER.get(estimator, 0)
    total = forward_flops(cfg, forwards + tokens * 2 * passes, length)
    if passes:
        total += factor_flops(matrices, tokens, length, passes) + eigen_flops(matrices)
    return total


def factor_flops(matrices: Sequence[Matrix], tokens: float, length: float, passes: int) -> float:
    """FLOPs of second moments of inputs and output gradients; a second pass forms each example's
    gradient and rotates it, or its tokens before, whichever is less."""
    each = 1.0 * sum(m.layers * width * block for m in matrices for width, block in m.sides)
    if passes > 1:
        each += sum(m.layers * (m.inputs * m.outputs + _rotation(m, length)) for m in matrices)
    return 2.0 * tokens * each


def _rotation(m: Matrix, length: float) -> float:
    """Multiply-adds for each token."""
    of_tokens = m.inputs * m.blocks[0] + m.outputs * m.blocks[1]
    return min(of_tokens, m.inputs * m.outputs * sum(m.blocks) / length)


def eigen_flops(matrices: Sequence[Matrix]) -> float:
    """FLOPs of the eigendecompositions: 9 b³ each (Golub and Van Loan, 4th ed., §8.3)."""
    return 9.0 * sum(m.layers * width * block**2 for m in matrices for width, block in m.sides)


def solve_flops(matrices: Sequence[Matrix], vectors: float) -> float:
    """FLOPs of H⁻¹ with its residual: each vector goes into the eigenbasis and back, twice."""
    each = sum(m.scalars * sum(m.blocks) for m in matrices)
    return 8.0 * vectors * each


def left_out(influence: Any) -> bool:
    """Whether gradients and solutions leave out what is outside the tapped layers."""
    dropped = influence.uncovered == "drop" and influence.estimator in ("kfac", "ekfac")
    return dropped or influence.estimator == "official"


def score_flops(
    cfg: DecoderConfig,
    length: float,
    tokens: float,
    tangents: int,
    *,
    packed: bool,
    matrices: Sequence[Matrix] | None = None,
) -> float:
    """FLOPs of derivatives of ``tokens`` tokens' losses along tangents.

    A gradient, but where rows are packed with several examples with a product for each tangent. One
    tangent is scored in forward mode and costs as much: its products take the gradient's place.
    """
    return gradient_flops(cfg, length, tokens, matrices, tangents if packed else 1)


def gradient_flops(
    cfg: DecoderConfig,
    length: float,
    tokens: float,
    matrices: Sequence[Matrix] | None = None,
    products: int = 1,
) -> float:
    """FLOPs of the gradient of ``tokens`` tokens' loss in ``matrices``; None: in all parameters.

    A forward and a backward through the activations (of attention's scores, twice as much), and
    ``products`` of each matrix with every token. Adapters' own matrices are not counted, here as
    everywhere.
    """
    passes = forward_flops(cfg, tokens, length) + forward_flops(cfg, tokens, 2 * length)
    if cfg.lora is not None:
        return passes
    each = forward_flops(cfg, 1, 0)
    if matrices is not None:
        each = 2.0 * sum(m.scalars for m in matrices)
    return passes + tokens * products * each
