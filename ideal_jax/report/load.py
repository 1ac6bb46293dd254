"""Reads the files of a work directory into plain checked dicts; knows nothing of the page."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ideal_jax import sealed
from ideal_jax.errors import UserError

Json = Any

# A schema is a type, [schema] for a list, {"*": schema} for a mapping with free keys, or a dict of
# keys, where "key?" may be missing or null. `float` takes any JSON number, and null for NaN.
_LOSS = {"nats_per_token": float, "bits_per_byte?": float, "stderr?": float, "n?": float}
_DIFFERENCE = {"difference": float, "stderr": float}
_CONFIG = {
    "command?": str,
    "config": {"*": object},
    "versions?": {"*": object},
    "devices?": {"*": object},
    "mesh?": {"*": object},
}
_MIXTURE = {
    "method?": str,
    "domains": [{"name": str, "available": float, "beta": float, "count": float, "tokens": float}],
    "plan_sha256?": str,
}
_INFLUENCE = {
    "estimator": str,
    "references": [str],
    "domains": [str],
    "matrix": [[float]],
    "stderr": [[float]],
    "stderr_train?": [[float]],
    "stderr_reference?": [[float]],
    "reference_shares?": [float],
    "alpha": [float],
    "alpha_stderr": [float],
    "beta?": [float],
    "counts?": [float],
    "given?": [float],
    "round?": int,
    "model?": str,
    "shares?": [float],
    "examples_used?": float,
    "layers?": [object],
    "reduction?": str,
    "centred?": bool,
    "common_mode?": float,
    "solve_residual?": [float],
    "domain_residual?": [float],
    "remedy?": str,
    "damping?": object,
    "decision?": {"stopped?": bool, "reason?": str},
    "interval?": {"level": float, "alpha_low": [float], "alpha_high": [float]},
    "ended?": str,
    "flops_share?": float,
    "important_share?": float,
    "examples?": [
        {
            "reference": str,
            "domain": str,
            "id": str,
            "effect": float,
            "prompt": str,
            "response": str,
        }
    ],
}
_EVALUATION = {
    "tasks": [
        {"name": str, "domain?": str, "metric?": str, "value": float, "stderr?": float, "n?": float}
    ],
    "overall?": float,
    "overall_stderr?": float,
    "reference_loss?": {"*": _LOSS},
    "test_loss?": {"*": _LOSS},
    "selection_loss?": float,
    "test_loss_mean?": float,
    "samples?": [
        {"domain?": str, "prompt": str, "generated": str, "reference?": str, "correct?": bool}
    ],
}
_STEP = {
    "step": float,
    "loss": float,
    "learning_rate?": float,
    "grad_norm?": float,
    "tokens_per_second?": float,
}
_SPEED = {
    "device": str,
    "devices": int,
    "step_seconds": float,
    "positions_per_second?": float,
    "tokens_per_second?": float,
    "supervised_tokens_per_second?": float,
    "mfu?": float,
    "flops_per_step": float,
    "peak_flops?": float,
    "peak_bytes?": float,
    "goodput": float,
    "seconds": {"*": float},
    "lost_steps": int,
}
_RESULTS = {
    "status?": str,
    "best_round?": int,
    "best_round_reason?": str,
    "lowest_round?": int,
    "confidence?": float,
    "rounds?": [
        {
            "round": int,
            "selection_loss?": float,
            "params_sha256?": str,
            "scores?": {"*": {"value": float, "stderr?": float}},
            "against_given?": _DIFFERENCE | {"capabilities": {"*": _DIFFERENCE}},
        }
    ],
    "cost?": {
        "train_flops?": float,
        "influence_flops?": float,
        "evaluation_flops?": float,
        "seconds?": {"*": float},
    },
    "phases?": [{"name": str, "round?": int, "flops?": float, "seconds?": float}],
}
_VERIFICATION = {
    "round": int,
    "method": str,
    "references": [str],
    "domains": [str],
    "orders": [
        {
            "order": int,
            "truth": {"*": [[float]]},
            "predictions": {"*": {"matrix": [[float]], "stderr": [[float]]}},
        }
    ],
    "summary": [
        {"estimator": str, "change": float}
        | {
            f"{name}{of}?": float
            for name in ("pearson", "spearman", "signs", "clear_signs", "slope")
            for of in ("", "_deviation")
        }
    ],
}


class Round(NamedTuple):
    """The files of ``rounds/NN``; what the run has not written yet is None (or no steps).

    Attributes:
      number: NN.
      mixture, influence, evaluation: checked contents; missing optional keys are None.
      steps: the logged steps in order; a step logged twice (a resumed run) counts once.
      speed: of the training, when it is done.
      unreadable: lines of metrics.jsonl that tell of no step (a write cut short by a kill).
    """

    number: int
    mixture: dict[str, Json]
    influence: dict[str, Json] | None
    evaluation: dict[str, Json] | None
    steps: list[dict[str, Json]]
    speed: dict[str, Json] | None
    unreadable: int


class Run(NamedTuple):
    """A work directory: its files, checked; ``results.json`` is None while it is missing.

    ``measured`` is what ``ideal-jax influence`` has left there.
    """

    config: dict[str, Json]
    results: dict[str, Json] | None
    rounds: list[Round]
    verifications: list[dict[str, Json]]
    measured: list[dict[str, Json]] = []  # noqa: RUF012 (never changed)


def load(workdir: Path) -> Run:
    """Reads a work directory, finished or not.

    Raises:
      UserError: the folder is missing, is no work directory, or one of its files is malformed.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder; give the --workdir of an ideal-jax run")
    config = _read(workdir / "config.json", _CONFIG, foreign=True)
    if config is None:
        raise UserError(
            f"{workdir}: not a work directory of ideal-jax (it has no config.json);"
            " give the --workdir of a run"
        )
    folders = (workdir / "rounds").glob("*/mixture.json")
    numbered = [path.parent for path in folders if re.fullmatch("[0-9]+", path.parent.name)]
    rounds = [_round(folder) for folder in sorted(numbered, key=lambda path: int(path.name))]
    checks = sorted((workdir / "verify").glob("round_*/*.json"))
    verifications = [_read(path, _VERIFICATION) for path in checks]
    results = _read(workdir / "results.json", _RESULTS)
    folder = workdir / "influence"
    files = [folder / "influence.json", *sorted(folder.glob("[0-9]*/influence.json"))]
    measured = [_influence(path) for path in files]
    return Run(
        config,
        results,
        rounds,
        [v for v in verifications if v is not None],
        [m for m in measured if m is not None],
    )


def _round(folder: Path) -> Round:
    mixture = _read(folder / "mixture.json", _MIXTURE)
    assert mixture is not None, "the folder was found by this file"
    influence = _influence(folder / "influence.json")
    steps, unreadable = _steps(folder / "metrics.jsonl")
    evaluation = _read(folder / "evaluation.json", _EVALUATION)
    speed = _read(folder / "speed.json", _SPEED)
    return Round(int(folder.name), mixture, influence, evaluation, steps, speed, unreadable)


def _influence(path: Path) -> dict[str, Json] | None:
    influence = _read(path, _INFLUENCE)
    if influence is not None:
        _check_shapes(influence, path)
    return influence


def _read(path: Path, schema: Json, foreign: bool = False) -> dict[str, Json] | None:
    """The checked contents of a JSON file, None if it does not exist."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); restore it or rerun") from error
    if foreign and not (isinstance(value, dict) and isinstance(value.get("config"), dict)):
        raise UserError(
            f"{path}: not written by ideal-jax (it has no 'config'); give the --workdir of a run"
        )
    if isinstance(value, dict) and sealed.SEAL in value and not sealed.is_whole(value):
        raise UserError(f"{path}: is damaged; restore it or rerun")
    return _checked(value, schema, f"{path}: ")


def _steps(path: Path) -> tuple[list[dict[str, Json]], int]:
    """The steps of a metrics file, and the number of lines that tell of none."""
    if not path.exists():
        return [], 0
    steps: dict[float, dict[str, Json]] = {}
    unreadable = 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            step = _checked(json.loads(line), _STEP, f"{path}:{number}: ")
        except (ValueError, RecursionError, UserError):
            unreadable += 1
            continue
        steps[step["step"]] = step
    return [steps[number] for number in sorted(steps)], unreadable


def _checked(value: Json, schema: Json, where: str) -> Json:
    """``value`` reduced to what ``schema`` names; ``where`` says where it stands, for errors."""
    if isinstance(schema, list):
        _require(isinstance(value, list), value, "a list", where)
        return [_checked(item, schema[0], f"{where}[{k}]") for k, item in enumerate(value)]
    if isinstance(schema, Mapping):
        _require(isinstance(value, dict), value, "an object", where)
        if "*" in schema:
            return {key: _checked(value[key], schema["*"], f"{where}.{key}") for key in value}
        result: dict[str, Json] = {}
        for name, inner in schema.items():
            key, optional = name.removesuffix("?"), name.endswith("?")
            if optional and value.get(key) is None:
                result[key] = None
            elif key not in value:
                raise UserError(f"{_place(where)} has no '{key}'; restore the file or rerun")
            else:
                result[key] = _checked(value[key], inner, f"{where}.{key}")
        return result
    if schema is float:
        if value is None:
            return math.nan
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(is_number, value, "a number", where)
        return value
    names = {str: "a text", bool: "true or false", int: "a whole number"}
    is_one = isinstance(value, schema) and not (schema is int and isinstance(value, bool))
    _require(is_one, value, names.get(schema, "a value"), where)
    return value


def _require(condition: bool, value: Json, expected: str, where: str) -> None:
    if not condition:
        found = json.dumps(value)[:40]
        raise UserError(
            f"{_place(where)} should be {expected}, found {found}; restore the file or rerun"
        )


def _place(where: str) -> str:
    """``file: a.b[0]`` from ``file: .a.b[0]``, and ``file:`` for the whole file."""
    return where.replace(": .", ": ", 1).rstrip()


def _check_shapes(influence: dict[str, Json], path: Path) -> None:
    """Every vector has R or n entries, every matrix is [R][n]."""
    R, n = len(influence["references"]), len(influence["domains"])
    vectors = {"alpha": n, "alpha_stderr": n, "beta": n, "shares": n, "counts": n, "given": n}
    vectors |= {"reference_shares": R, "solve_residual": R}
    matrices = ("matrix", "stderr", "stderr_train", "stderr_reference")
    good = {key: influence[key] is None or len(influence[key]) == k for key, k in vectors.items()}
    for key in matrices:
        rows = influence[key]
        good[key] = rows is None or (len(rows) == R and all(len(row) == n for row in rows))
    for key, fits in good.items():
        if not fits:
            raise UserError(
                f"{path}: '{key}' does not fit {R} references and {n} domains;"
                " restore the file or rerun"
            )
