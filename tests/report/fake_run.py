"""A work directory that looks finished, without any run: what the tests of the page read."""

import json
from pathlib import Path

import numpy as np

DOMAINS = ("math", "code", "reason", "instr", "trust")


def write_run(
    workdir: Path,
    domains=DOMAINS,
    references=None,
    updates=2,
    best=2,
    text="12 apples cost 3 dollars.",
    scale=0.02,
) -> Path:
    """A finished work directory with realistic numbers, of ``updates`` + 1 rounds."""
    rng = np.random.default_rng(7)
    references = tuple(domains if references is None else references)
    R, n = len(references), len(domains)
    available = rng.integers(900, 2400, n)
    count, beta = available.astype(float), np.zeros(n)
    config = {
        "command": "ideal-jax run --config=configs/quickstart.py --workdir=runs/demo",
        "config": {"seed": 0, "mixture": {"rounds": updates, "step": 0.5}, "training": {}},
        "versions": {"ideal-jax": "0.1.0", "jax": "0.10.2", "python": "3.12.4"},
        "devices": {"platform": "cpu", "count": 2, "kind": "cpu", "processes": 1},
        "mesh": {"replica": 1, "fsdp": 2, "tensor": 1},
    }
    config["config"]["training"]["steps"] = 300
    write(workdir / "config.json", config)
    entries, phases = [], [_phase("base", None, 0.0, 11.2)]
    for k in range(updates + 1):
        folder = workdir / "rounds" / f"{k:02d}"
        rows = [
            {
                "name": name,
                "available": int(available[j]),
                "beta": float(beta[j]),
                "count": round(count[j]),
                "tokens": round(count[j] * 148.3),
            }
            for j, name in enumerate(domains)
        ]
        mixture = {"round": k, "method": "ideal", "seed": 0, "domains": rows}
        write(folder / "mixture.json", mixture | {"plan_sha256": f"{k:064x}"})
        _write_steps(folder / "metrics.jsonl", rng, k)
        write(folder / "speed.json", _speed(k))
        evaluation = _evaluation(rng, domains, references, k, text)
        write(folder / "evaluation.json", evaluation)
        phases += [_phase("train", k, 3.1e15, 412.7), _phase("evaluate", k, 2.4e14, 61.0)]
        entries.append(
            {
                "round": k,
                "mixture": {row["name"]: row["count"] for row in rows},
                "overall": evaluation["overall"],
                "overall_stderr": evaluation["overall_stderr"],
                "beta": {row["name"]: row["beta"] for row in rows},
                "selection_loss": evaluation["selection_loss"],
                "test_loss": {name: 1.2 for name in references},
                "params_sha256": f"{k + 100:064x}",
                "scores": {
                    task["domain"]: {"value": task["value"], "stderr": task["stderr"]}
                    for task in evaluation["tasks"]
                },
                "against_given": _against(references, k),
            }
        )
        if k == updates:
            break
        phases.append(_phase("influence", k, 1.9e15, 288.4))
        influence, beta = _influence(rng, domains, references, count / count.sum(), scale)
        write(folder / "influence.json", influence)
        count = count * (1 + beta)
        count *= available.sum() / count.sum()
    results = {
        "status": "finished",
        "rounds": entries,
        "best_round": best,
        "lowest_round": updates,
        "confidence": 0.95,
        "best_round_reason": f"lowest reference loss of {updates + 1} rounds",
        "cost": {
            "train_flops": 9.3e15,
            "influence_flops": 3.8e15,
            "evaluation_flops": 7.2e14,
            "seconds": {"train": 1238.1, "influence": 576.8, "evaluate": 183.0},
        },
        "phases": phases,
    }
    write(workdir / "results.json", results)
    assert n == len(rows)
    assert len(influence["matrix"]) == R
    return workdir


def _against(references, k):
    """The last capability gets worse, the one before it stays equal within error."""
    gains = [-0.06] * (len(references) - 2) + [-0.004, 0.021]
    return {
        "difference": -0.041 * k,
        "stderr": 0.0081 * k,
        "capabilities": {
            name: {"difference": gain * k, "stderr": 0.0071 * k}
            for name, gain in zip(references, gains[-len(references) :], strict=True)
        },
    }


def _influence(rng, domains, references, shares, scale):
    R, n = len(references), len(domains)
    matrix = scale * (rng.normal(size=(R, n)) * 0.6 - 1.6 * np.eye(R, n))
    matrix -= (matrix @ np.ones((n, 1))) * shares
    train = scale * rng.uniform(0.1, 0.3, (R, n))
    reference = scale * rng.uniform(0.1, 0.4, (R, n))
    stderr = np.sqrt(train**2 + reference**2)
    weights = np.full(R, 1 / R)
    alpha = weights @ matrix
    beta = -0.15 * alpha / (np.abs(alpha).max() or 1.0)
    influence = {
        "estimator": "ggn_cg",
        "references": list(references),
        "domains": list(domains),
        "matrix": matrix.tolist(),
        "stderr": stderr.tolist(),
        "stderr_train": train.tolist(),
        "stderr_reference": reference.tolist(),
        "reference_shares": weights.tolist(),
        "alpha": alpha.tolist(),
        "alpha_stderr": np.sqrt((weights**2) @ stderr**2).tolist(),
        "beta": beta.tolist(),
        "shares": shares.tolist(),
        "examples_used": 4200,
        "layers": ["layers/mlp/up", "layers/mlp/down", "layers/attention/query"],
        "reduction": "token",
        "centred": True,
        "common_mode": 0.83,
        "solve_residual": np.linspace(2e-4, 9e-4, R).tolist(),
        "damping": {"mode": "relative", "value": 0.1, "absolute": 0.00042},
        "decision": {"stopped": False, "reason": "3 of 5 signs of α are known"},
        "ended": "the sign of every α is known",
        "flops_share": 0.183,
        "important_share": 0.71,
        "interval": {
            "level": 0.95,
            "alpha_low": (alpha - 0.5 * scale).tolist(),
            "alpha_high": (alpha + 0.5 * scale).tolist(),
        },
        "examples": [
            {
                "reference": name,
                "domain": domains[0],
                "id": f"example {k}",
                "effect": effect * scale,
                "prompt": "What is 2 + 2? <b>&",
                "response": "four",
            }
            for name in (*references, "overall")
            for k, effect in enumerate((-0.02, 0.01))
        ],
        "seconds": {"fit": 100.0, "solve": 120.0},
    }
    return influence, beta


def _evaluation(rng, domains, references, k, text):
    tasks = [
        {
            "name": f"synthetic_{name}",
            "domain": name,
            "metric": "exact_match",
            "value": float(np.clip(rng.uniform(0.3, 0.7) + 0.04 * k, 0, 1)),
            "stderr": 0.022,
            "n": 512,
        }
        for name in references
    ]

    def losses():
        return {
            name: {
                "nats_per_token": 1.4 - 0.05 * k + float(rng.normal(0, 0.2)),
                "bits_per_byte": 0.61 - 0.02 * k,
                "stderr": 0.013,
                "n": 256,
            }
            for name in references
        }

    samples = [
        {
            "domain": name,
            "prompt": f"How much does one apple cost?\n{text}",
            "generated": f"One apple costs 12 / 3 = 4 dollars.\n{text}" * (1 + j),
            "reference": "3 / 12 = 0.25 dollars",
            "correct": j % 2 == 0,
        }
        for j, name in enumerate(references[:3])
    ]
    return {
        "tasks": tasks,
        "overall": float(np.mean([task["value"] for task in tasks])),
        "overall_stderr": 0.0102,
        "reference_loss": losses(),
        "test_loss": losses(),
        "selection_loss": 1.4123 - 0.041 * k,
        "test_loss_mean": 1.4345 - 0.039 * k,
        "samples": samples,
    }


def _speed(k):
    parts = {"all": 200.0, "step": 150.0, "start": 3.0, "compile": 21.0, "data": 2.0}
    return {
        "device": "NVIDIA H100 80GB HBM3",
        "devices": 8,
        "step_seconds": 0.5 + 0.01 * k,
        "positions_per_second": 65536.0,
        "tokens_per_second": 61234.0,
        "supervised_tokens_per_second": 20111.0,
        "mfu": 0.4321,
        "flops_per_step": 1.709388e15,
        "peak_flops": 7.912e15,
        "peak_bytes": 60 * 2**30,
        "goodput": 0.75,
        "seconds": parts | {"checkpoint": 12.0, "lost": 8.0, "rest": 4.0},
        "lost_steps": 16,
    }


def _phase(name, number, flops, seconds):
    return {"name": name, "round": number, "flops": flops, "seconds": seconds}


def _write_steps(path, rng, k):
    lines = []
    for step in range(1, 301):
        loss = 1.2 - 0.05 * k + 2.6 * np.exp(-step / 45) + float(rng.normal(0, 0.03))
        line = {"step": step, "loss": loss, "learning_rate": 2e-5, "grad_norm": 1.3, "tokens": 9}
        lines.append(json.dumps(line | {"tokens_per_second": 20500.0, "seconds": 0.2 * step}))
    path.write_text("\n".join(lines) + "\n")


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change(path, **values):
    """Replaces keys of a JSON file."""
    write(path, json.loads(path.read_text()) | values)
