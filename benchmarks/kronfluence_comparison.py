"""EK-FAC influence against kronfluence 1.0.1 (PyTorch): the same numbers, seconds, memory.

    python benchmarks/kronfluence_comparison.py --peer-python=ENV/bin/python [--small] [--repeats=3]
        [--device=cpu|gpu]

ENV holds torch, transformers and, without its dependencies (they pull torchvision), kronfluence,
accelerate, einconv, einops and opt-einsum. One random Llama and one set of examples go to both; the
decoder is in Hugging Face's layout, so kernels are transposed and nothing is permuted. Both fit
EK-FAC with the empirical Fisher to the MLP kernels, solve for each reference and score every
training example, fp32, equal batches, alternately and each in processes of its own. A process goes
through twice: cold, with compilation, and warm. The peer's ``pairwise`` scores take one pass over
the training examples and one preconditioned gradient per query; ``aggregated`` ones a pass and a
gradient per reference.

Units. ℓ is a sum over supervised tokens. Take N sequences, P positions and W supervised tokens.
Both have A = (1/P) Σ a aᵀ. kronfluence has G' = (1/P) Σ g gᵀ and λ' = (1/N) Σ_x (…)², we have
G = (P/W) G' and λ = (N/W) λ', so the damping δ = (N/W) δ' gives the same inverse up to that factor.
Its score is σ'_i(x) = Σ_{q∈R_i} ∇ℓ(q)ᵀ (H' + δ')⁻¹ ∇ℓ(x), ours σ_i(x) = s_iᵀ∇ℓ(x) = (W/N) σ'_i(x)
/ W_i with W_i the supervised tokens of R_i; A_ij = −(1/W) Σ_{x∈D_j} (σ_i(x) − w(x) Σ_y σ_i(y) / W).
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from flax import linen as nn

from ideal_jax.influence import Options, Problem, Sample, blocks, estimate
from ideal_jax.influence.decoder import decoder_problem
from ideal_jax.influence.passes import Placement, accumulate
from ideal_jax.models import Decoder, DecoderConfig

HERE = pathlib.Path(__file__).resolve()
SMALL = dict(d_model=64, n_layers=2, d_ff=176, head_dim=16, vocab_size=256, length=32)
PHASES = ("factors", "eigenvectors", "eigenvalues", "scores")
DENSE = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", type=pathlib.Path)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--peer-scores", choices=("pairwise", "aggregated"), default="pairwise")
    parser.add_argument("--folder", type=pathlib.Path, help="of all files; default: temporary")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="sizes that take seconds")
    for name, value in (("d_model", 256), ("n_layers", 4), ("d_ff", 704), ("head_dim", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--n_heads", type=int, default=4)
    parser.add_argument("--n_kv_heads", type=int, default=2)
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--length", type=int, default=128, help="tokens of every sequence")
    parser.add_argument("--domains", default="96,64,48,32,16", help="training sequences of each")
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--queries", type=int, default=8, help="sequences of each reference")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--damping", type=float, default=0.03, help="absolute, kronfluence's unit")
    parser.add_argument("--side", choices=("ours",), help=argparse.SUPPRESS)
    if "--small" in sys.argv:
        parser.set_defaults(**SMALL)
    arguments = parser.parse_args()
    if arguments.side:
        run_ours(arguments.folder)
        return
    jax.config.update("jax_platforms", "cpu")  # the device is for the two sides
    folder = arguments.folder or pathlib.Path(tempfile.mkdtemp(prefix="kronfluence_"))
    make_case(folder, arguments)
    peer = [arguments.peer_python, HERE.with_name("kronfluence_peer.py")]
    commands = {
        "ours": [sys.executable, HERE, "--side=ours"],
        "peer": [*peer, f"--scores={arguments.peer_scores}", f"--device={arguments.device}"],
    }
    # Threads that spin while they wait, torch's (OpenMP) and those of JAX's eigh (OpenBLAS), cost
    # either side dear wherever a core is shared: up to 30 times the seconds.
    quiet = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}
    platform = {"cpu": "cpu", "gpu": "cuda"}[arguments.device]
    exact = {"JAX_PLATFORMS": platform, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    environment = {**os.environ, **quiet, **exact}
    measured: dict[str, list[dict]] = {side: [] for side in commands}
    for _ in range(arguments.repeats):
        for side, command in commands.items():
            subprocess.run([*command, f"--folder={folder}"], check=True, env=environment)
            measured[side].append(json.loads((folder / f"{side}.json").read_text()))
    print(seconds_table(measured), agreement(folder), sep="\n\n")


def make_case(folder: pathlib.Path, arguments: argparse.Namespace) -> None:
    """Writes the model and the examples that both sides read."""
    sizes = ["vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff"]
    cfg = DecoderConfig(**{name: getattr(arguments, name) for name in sizes})
    model = {name: getattr(cfg, name) for name in (*sizes, "rope_theta", "norm_eps")}
    domains = [int(size) for size in arguments.domains.split(",")]
    case = {"model": model, "domains": domains}
    case |= {name: getattr(arguments, name) for name in ("references", "batch_size", "damping")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").write_text(json.dumps(case))
    params = jax.jit(Decoder(cfg).init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    np.savez(folder / "weights.npz", **hugging_face(nn.unbox(params)))
    rng = np.random.default_rng(0)
    V, T = cfg.vocab_size, arguments.length
    languages = rng.dirichlet(np.full(V, 0.1), max(len(domains), arguments.references))
    queries = [arguments.queries] * arguments.references
    data = {
        f"{kind}_{field}": array
        for kind, counts in (("train", domains), ("query", queries))
        for field, array in random_examples(rng, languages, counts, T).items()
    }
    np.savez(folder / "data.npz", **data)


def random_examples(
    rng: np.random.Generator, languages: np.ndarray, counts: list[int], length: int
) -> dict[str, np.ndarray]:
    """Sequences whose k-th group has tokens of the k-th distribution, the prompts unsupervised."""
    V = languages.shape[1]
    rows = [
        rng.choice(V, (count, length + 1), p=language)
        for language, count in zip(languages, counts, strict=False)
    ]
    tokens = np.concatenate(rows).astype(np.int32)
    prompts = rng.integers(length // 8, length // 2, (len(tokens), 1))
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (np.arange(length) >= prompts).astype(np.float32),
    }


def hugging_face(params: dict) -> dict[str, np.ndarray]:
    """The parameters by the names of ``LlamaForCausalLM``."""
    layers = params["layers"]
    scales = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    out = {
        "model.embed_tokens.weight": params["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    for layer in range(layers["mlp_norm"]["scale"].shape[0]):
        prefix = f"model.layers.{layer}"
        for ours, theirs in scales.items():
            out[f"{prefix}.{theirs}.weight"] = layers[ours]["scale"][layer]
        for name in "qkvo":
            kernel = layers["attention"][name]["kernel"][layer]
            out[f"{prefix}.self_attn.{name}_proj.weight"] = kernel.T
        for name, theirs in DENSE.items():
            out[f"{prefix}.mlp.{theirs}.weight"] = layers["mlp"][name]["kernel"][layer].T
    return {name: np.asarray(x) for name, x in out.items()}


def run_ours(folder: pathlib.Path) -> None:
    """Our side, in its own process: ``ours.json`` and ``ours.npz``."""
    case = json.loads((folder / "case.json").read_text())
    data = dict(np.load(folder / "data.npz"))
    model = Decoder(DecoderConfig(**case["model"]))
    params = from_hugging_face(dict(np.load(folder / "weights.npz")), case["model"]["n_layers"])
    logits = model.apply({"params": params}, data["train_tokens"][:2])
    count = case["references"]
    domains = samples(data, "train", case["domains"], case["batch_size"])
    queries = [len(data["query_tokens"]) // count] * count
    references = samples(data, "query", queries, case["batch_size"])
    curvature = [batch for sample in domains.values() for batch in sample.batches]
    problem = decoder_problem(model, "mlp")
    per_weight = len(data["train_weights"]) / float(data["train_weights"].sum())
    options = Options(case["damping"] * per_weight, "absolute", "empirical", "drop")
    before, runs = memory("VmRSS", "bytes_in_use"), []
    for _ in range(2):
        laps = Laps()
        matrix, found = estimate(
            problem,
            params,
            domains=domains,
            references=references,
            curvature=curvature,
            estimator="ekfac",
            options=options,
            progress=laps,
        )
        runs.append(laps.done())
    measured = {"runs": runs, "start_mib": before}
    measured["peak_mib"] = memory("VmHWM", "peak_bytes_in_use")
    (folder / "ours.json").write_text(json.dumps(measured))
    fitted = blocks.fit_blocks(
        problem, params, curvature, key=jax.random.key(0), options=options, refit=True
    )
    owners, sums = blocks.kfac.input_owners(problem), factor_sums(problem, params, curvature)
    inputs = {name: sums.inputs[owner] for name, owner in owners.items()}
    factors = by_module("inputs", inputs, sums.positions)
    factors |= by_module("outputs", sums.outputs, sums.weight)
    factors |= by_module("eigenvalues", {n: b.eigenvalues for n, b in fitted.bases.items()}, 1)
    scores = np.concatenate([found.scores[name].scores for name in domains], axis=1)
    np.savez(folder / "ours.npz", logits=logits, scores=scores, matrix=matrix.matrix, **factors)


def factor_sums(problem: Problem, params: dict, batches: list[dict]) -> blocks.kfac.Factors:
    """Both factors of every layer, as ``estimate`` had them."""
    place, key = Placement.of(params), jax.random.key(0)
    return accumulate(
        lambda batch: blocks.kfac.factor_sums(
            problem, "empirical", Options().max_factor, place, params, key, batch
        ),
        batches,
        phase="factors",
    )


def by_module(kind: str, sums: dict[str, jax.Array], count: float) -> dict[str, np.ndarray]:
    """Means by the peer's module names, oriented like its weights (output, input)."""
    return {
        f"{kind}/model.layers.{layer}.mlp.{DENSE[name.split('/')[-2]]}": np.squeeze(x).T / count
        for name, stacked in sums.items()
        for layer, x in enumerate(np.asarray(stacked))
    }


def from_hugging_face(tensors: dict[str, np.ndarray], n_layers: int) -> dict:
    """The inverse of ``hugging_face``."""

    def stacked(name: str) -> jax.Array:
        return jax.numpy.stack(
            [tensors[f"model.layers.{layer}.{name}.weight"].T for layer in range(n_layers)]
        )

    return {
        "embedding": jax.numpy.asarray(tensors["model.embed_tokens.weight"]),
        "final_norm": {"scale": jax.numpy.asarray(tensors["model.norm.weight"])},
        "layers": {
            "attention_norm": {"scale": stacked("input_layernorm")},
            "mlp_norm": {"scale": stacked("post_attention_layernorm")},
            "attention": {n: {"kernel": stacked(f"self_attn.{n}_proj")} for n in "qkvo"},
            "mlp": {n: {"kernel": stacked(f"mlp.{theirs}")} for n, theirs in DENSE.items()},
        },
    }


def samples(
    data: dict[str, np.ndarray], kind: str, counts: list[int], size: int
) -> dict[str, Sample]:
    """The examples of each domain or reference, in batches."""
    out, start = {}, 0
    for number, count in enumerate(counts):
        batches = []
        for first in range(start, start + count, size):
            rows = slice(first, min(first + size, start + count))
            fields = {f: data[f"{kind}_{f}"][rows] for f in ("tokens", "targets", "weights")}
            shape = fields["tokens"].shape
            fields["segments"] = np.ones(shape, np.int32)
            fields["examples"] = np.arange(shape[0])[:, None]
            fields["positions"] = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
            batches.append({name: jax.numpy.asarray(x) for name, x in fields.items()})
        out[str(number)] = Sample(batches, size=count)
        start += count
    return out


class Laps:
    """A progress that times the phases of ``estimate``."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        self._eigenbasis = blocks.kfac.eigenbasis
        blocks.kfac.eigenbasis = self._timed_eigenbasis

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Called by ``estimate``."""
        if phase in PHASES and done == total:
            self._lap(phase)
        if phase == "reference gradients" and done == 0 and "error bars" not in self._seconds:
            self._lap("error bars")

    def done(self) -> dict[str, float]:
        """Seconds by phase; the references' side, for error bars alone, comes before the scores."""
        self._lap("scores")
        blocks.kfac.eigenbasis = self._eigenbasis
        return self._seconds

    def _timed_eigenbasis(self, problem, placement, factors):
        basis = jax.block_until_ready(self._eigenbasis(problem, placement, factors))
        self._lap("eigenvectors")
        return basis

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase], self._last = now - self._last, now


def memory(field: str, on_device: str) -> float:
    """MiB of this process on a CPU by ``/proc``, and on a device by JAX's allocator."""
    if held := jax.local_devices()[0].memory_stats():
        return held[on_device] / 2**20
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) / 1024


def seconds_table(measured: dict[str, list[dict]]) -> str:
    """Phases of each side's fastest process, cold (first time) and warm (second time)."""
    best: dict[tuple[str, int], dict[str, float]] = {}
    for side, processes in measured.items():
        for run in (0, 1):
            every = [process["runs"][run] for process in processes]
            best[side, run] = min(every, key=lambda phases: sum(phases[p] for p in PHASES))
    lines = [
        "| phase | ours, s | kronfluence, s | ratio | ours, cold | kronfluence, cold |",
        "|---|---|---|---|---|---|",
    ]
    totals = [("**total**", PHASES), ("total with error bars", (*PHASES, "error bars"))]
    rows = [(phase, (phase,)) for phase in (*PHASES, "error bars")]
    for label, phases in (*rows[:-1], totals[0], rows[-1], totals[1]):
        ours, peer, cold, peer_cold = (
            sum(best[side, run].get(phase, 0) for phase in phases)
            for run in (1, 0)
            for side in ("ours", "peer")
        )
        cells = [ours, peer, peer / ours, cold, peer_cold]
        lines.append(f"| {label} | " + " | ".join(f"{x:.2f}" if x else "–" for x in cells) + " |")
    peaks = {side: min(x["peak_mib"] for x in processes) for side, processes in measured.items()}
    starts = {side: min(x["start_mib"] for x in processes) for side, processes in measured.items()}
    for label, memories in (("peak memory, MiB", peaks), ("before the first phase, MiB", starts)):
        ratio = memories["peer"] / memories["ours"]
        lines.append(
            f"| {label} | {memories['ours']:.0f} | {memories['peer']:.0f} | {ratio:.2f} | | |"
        )
    return "\n".join(lines)


def agreement(folder: pathlib.Path) -> str:
    """How far our numbers are from the peer's, in our units."""
    case = json.loads((folder / "case.json").read_text())
    ours, peer = dict(np.load(folder / "ours.npz")), dict(np.load(folder / "peer.npz"))
    data = np.load(folder / "data.npz")
    w_N = data["train_weights"].sum(1, dtype=float)
    N, W, P = len(w_N), w_N.sum(), data["train_weights"].size
    queries = data["query_weights"].sum(1, dtype=float)
    W_i = queries.reshape(case["references"], -1).sum(1)
    units = {"inputs": 1, "outputs": P / W, "eigenvalues": N / W}
    lines = ["| quantity | relative difference (largest of the modules) |", "|---|---|"]
    rows = {"logits": _relative(ours["logits"], peer["logits"])}
    for kind, unit in units.items():
        names = [name for name in peer if name.startswith(f"{kind}/")]
        rows[kind] = max(_relative(ours[name], unit * peer[name]) for name in names)
    scores = W / N * peer["scores"] / W_i[:, None]
    rows["scores of examples"] = _relative(ours["scores"], scores)
    centred = scores - w_N * scores.sum(1, keepdims=True) / W
    matrices = [
        np.stack(
            [-x.sum(1) / W for x in np.split(each, np.cumsum(case["domains"])[:-1], axis=1)], 1
        )
        for each in (scores, centred)
    ]
    first = np.cumsum(case["domains"])[:-1]
    uncentred = -np.stack([x.sum(1) / W for x in np.split(ours["scores"], first, axis=1)], 1)
    rows["A, uncentred"] = _relative(uncentred, matrices[0])
    rows["A"] = _relative(ours["matrix"], matrices[1])
    lines += [f"| {name} | {value:.1e} |" for name, value in rows.items()]
    from scipy import stats  # our side is measured without it

    rank = stats.spearmanr(ours["matrix"].ravel(), matrices[1].ravel()).statistic
    lines.append(f"| A: Spearman correlation | {rank:.4f} |")
    return "\n".join(lines)


def _relative(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


if __name__ == "__main__":
    main()
