"""An influence matrix as ``influence.json``, and back."""

import math
import pathlib
from typing import Any

import numpy as np

from ideal_jax.errors import UserError
from ideal_jax.mixture import FAILED_RESIDUAL, InfluenceMatrix, is_settled
from ideal_jax.mixture.update import Z95
from ideal_jax.report.matrix import rough_solves


def influence_json(matrix: InfluenceMatrix) -> dict[str, Any]:
    """The numbers of an influence matrix as JSON."""
    return {
        "estimator": matrix.estimator,
        "references": list(matrix.references),
        "domains": list(matrix.domains),
        "matrix": matrix.matrix.tolist(),
        "stderr": matrix.stderr.tolist(),
        "stderr_train": matrix.stderr_train.tolist(),
        "stderr_reference": matrix.stderr_reference.tolist(),
        "alpha": matrix.alpha.tolist(),
        "alpha_stderr": matrix.alpha_stderr.tolist(),
        "examples_used": matrix.examples_used,
        "shares": matrix.shares.tolist(),
        "centred": matrix.centred,
        "common_mode": None if math.isnan(matrix.common_mode) else matrix.common_mode,
        "solve_residual": matrix.solve_residual.tolist(),
        "damping": {
            "mode": matrix.damping_mode,
            "value": matrix.damping_value,
            "absolute": matrix.damping,
        },
    }


def influence_of_json(record: dict[str, Any]) -> InfluenceMatrix:
    """The inverse of ``influence_json``."""
    arrays = ("matrix", "stderr", "alpha", "alpha_stderr", "stderr_train", "stderr_reference")
    return InfluenceMatrix(
        references=tuple(record["references"]),
        domains=tuple(record["domains"]),
        **{name: np.asarray(record[name]) for name in arrays},
        common_mode=math.nan if record["common_mode"] is None else record["common_mode"],
        shares=np.asarray(record["shares"]),
        examples_used=record["examples_used"],
        estimator=record["estimator"],
        damping=record["damping"]["absolute"],
        damping_mode=record["damping"]["mode"],
        damping_value=record["damping"]["value"],
        solve_residual=np.asarray(record["solve_residual"]),
        centred=record["centred"],
    )


def check_solved(record: dict[str, Any], file: pathlib.Path) -> None:
    """Whether an ``influence.json`` may decide; one of an earlier version may not.

    Raises:
      UserError: a solve behind it failed.
    """
    worst = max((float(x) for x in record["solve_residual"]), default=0.0)
    if not worst < FAILED_RESIDUAL:
        raise UserError(
            f"{file}: its solves failed with a residual of {worst:.3g}, where 1 is no better than"
            " no solution; remove it to measure again, with another influence.damping"
        )


def solve_warning(record: dict[str, Any]) -> str:
    """What to say of rough solves; "" if they are good."""
    return rough_solves(record["solve_residual"], record["references"], record.get("remedy"))


def decision(matrix: InfluenceMatrix) -> dict[str, Any]:
    """Whether anything is known to be worth changing, and for which domains."""
    stopped = is_settled(matrix)
    known = [
        name
        for name, a, e in zip(matrix.domains, matrix.alpha, matrix.alpha_stderr, strict=True)
        if abs(a) > Z95 * e
    ]
    reason = (
        "No domain's α exceeds its 95 % error: nothing is known to be worth changing."
        if stopped
        else f"α exceeds its 95 % error for {', '.join(known)}."
    )
    return {"stopped": stopped, "reason": reason}
