"""How curvature is fitted and solved."""

import dataclasses

from ideal_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices that the estimators share.

    Attributes:
      damping: λ ("absolute"), or κ ("relative": λ is κ times the mean eigenvalue of the
        Gauss-Newton matrix, of each block where the estimator has blocks).
      damping_mode: "relative" or "absolute".
      fisher: labels of the block estimators: "sampled" from the model, or "empirical".
      uncovered: parameters that no tap covers get a damped "diagonal", or are left out ("drop").
      inversion: how the block estimators use λ: "damped" inverse, "pseudoinverse" (cut off what
        lies below λ), or "tikhonov" (K-FAC alone: both factors damped); see
        ``influence.inversion``.
      important: share of the tapped layers that counts, those whose K-FAC eigenvalues vary least
        (the paper's rule); 1: all of them.
      max_factor: widest Kronecker factor in one piece; wider ones are split into equal blocks.
      layer_groups: parts in which the tapped layers are fitted one after the other, each with its
        own passes over the examples: less memory, more time.
      tolerance: of conjugate gradients, on ‖residual‖ / ‖right-hand side‖; 0: all iterations.
      iterations: the most products of conjugate gradients.
    """

    damping: float = 0.1
    damping_mode: str = "relative"
    fisher: str = "sampled"
    uncovered: str = "diagonal"
    inversion: str = "damped"
    important: float = 1.0
    max_factor: int = 8192
    layer_groups: int = 1
    tolerance: float = 1e-3
    iterations: int = 100

    def __post_init__(self) -> None:
        for name, allowed in (
            ("damping_mode", ("relative", "absolute")),
            ("fisher", ("sampled", "empirical")),
            ("uncovered", ("diagonal", "drop")),
            ("inversion", ("damped", "pseudoinverse", "tikhonov")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"influence.{name}={getattr(self, name)!r}: choose {' or '.join(allowed)}"
                )
        for name, least in (
            ("damping", 0),
            ("tolerance", 0),
            ("max_factor", 1),
            ("layer_groups", 1),
            ("iterations", 1),
        ):
            if not getattr(self, name) >= least:
                raise UserError(f"influence.{name}={getattr(self, name)}: must be at least {least}")
        if not 0 < self.important <= 1:
            raise UserError(f"influence.important={self.important}: must be in (0, 1]")
