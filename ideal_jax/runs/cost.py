"""FLOPs by formula, so that they do not depend on the machine or on a restart.

Matrix products only, 2 FLOPs per multiply-add; attention counts full T×T scores, whatever a
kernel leaves out.
Forward = 2·P_matrix + 4·L·T·N·H per token; backward = 2 × forward (Kaplan et al., arXiv 2001.08361,
appendix; Chowdhery et al., arXiv 2204.02311, appendix B).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ideal_jax.influence import Needs, needs_of
from ideal_jax.influence.curvature import PROBES
from ideal_jax.models import DecoderConfig


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


class Examples(NamedTuple):
    """The examples that a curvature is fitted to.

    Attributes:
      tokens: T · rows, padding included.
      length: T.
      batches: they come in.
    """

    tokens: float
    length: float
    batches: float


def fit_flops(
    cfg: DecoderConfig, needs: Needs, options: Any, x: Examples, matrices: Sequence[Matrix]
) -> dict[str, float]:
    """FLOPs of fitting a curvature, by phase; what the estimator does not need is left out.

    A pass with taps is a forward and a backward through the activations alone (as much again), and
    ``factor_flops``; one that squares gradients a forward and the gradient of its leaves.

    Args:
      options: the config's influence section.
      matrices: the dense layers with taps.
    """
    found: dict[str, float] = {}
    if needs.kronecker:
        tapped = forward_flops(cfg, 2 * x.tokens, x.length)
        first, both = (factor_flops(matrices, x.tokens, x.length, n) for n in (1, 2))
        found["curvature"] = tapped + first
        found["eigen"] = eigen_flops(matrices)
        if needs.kronecker > 1:
            found["refit"] = tapped + both - first
    if needs.batch_gradients:
        found["refit"] = gradient_flops(cfg, x.length, x.tokens)
        found["refit"] += x.batches * rotation_flops(matrices, 0.5)
    if needs.squares(options.uncovered):
        covered = () if needs.diagonal == "all" else matrices
        found["diagonal"] = square_flops(cfg, x, covered, sampled=options.fisher == "sampled")
    if needs.trace(options):
        each = 2 if cfg.lora is not None else 3  # a forward pass, and its derivative
        found["trace"] = PROBES * each * forward_flops(cfg, x.tokens, x.length)
    if needs.smallest_eigenvalue:
        found["lanczos"] = options.iterations * product_flops(cfg, needs, x, 1)
    return found


def solve_flops(
    cfg: DecoderConfig,
    needs: Needs,
    x: Examples,
    matrices: Sequence[Matrix],
    vectors: float,
    products: float,
) -> dict[str, float]:
    """FLOPs of solving for ``vectors`` right-hand sides at one time, by phase.

    Args:
      products: steps of conjugate gradients; the residual takes one more.
    """
    found: dict[str, float] = {}
    if needs.product:
        found["product"] = (products + 1) * product_flops(cfg, needs, x, vectors)
    if needs.rotations:
        times = products + 1 if needs.product else 1
        found["solve"] = times * vectors * rotation_flops(matrices, needs.rotations)
    return found


def product_flops(cfg: DecoderConfig, needs: Needs, x: Examples, vectors: float) -> float:
    """FLOPs of a product of the exact curvature with so many vectors: they share what has no
    derivative along them.

    Gauss-Newton: a forward pass, and for each vector its derivative and the transpose. Hessian: a
    gradient, and its derivative along each vector.
    """
    forward, trained = forward_flops(cfg, x.tokens, x.length), 2 if cfg.lora is None else 1
    shared, each = {
        "gauss_newton": (1, 2 * trained),
        "hessian": (1 + trained, 2 * trained + 2 * (cfg.lora is None)),
    }[needs.product]
    return forward * (shared + each * vectors)


def square_flops(
    cfg: DecoderConfig, x: Examples, covered: Sequence[Matrix], *, sampled: bool
) -> float:
    """FLOPs of squaring every example's gradient outside the covered layers; labels that are drawn
    from the model take a forward pass of their own."""
    flops = gradient_flops(cfg, x.length, x.tokens, ())
    if cfg.lora is None:
        products = forward_flops(cfg, x.tokens, 0) - 2.0 * x.tokens * sum(
            m.scalars for m in covered
        )
        flops += max(products, 0.0)
    return flops + sampled * forward_flops(cfg, x.tokens, x.length)


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


def rotation_flops(matrices: Sequence[Matrix], rotations: float) -> float:
    """FLOPs of taking one vector into the eigenbasis and back, so many times."""
    return 4.0 * rotations * sum(m.scalars * sum(m.blocks) for m in matrices)


def left_out(influence: Any) -> bool:
    """Whether gradients and solutions leave out what is outside the tapped layers."""
    return needs_of(influence.estimator).covered_only(influence.uncovered)


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
