"""The peer's side of ``kronfluence_comparison.py``; runs in an environment with kronfluence.

    python benchmarks/kronfluence_peer.py --folder=DIR [--scores=pairwise|aggregated]
        [--device=cpu|gpu]

Reads ``case.json``, ``weights.npz`` and ``data.npz``, goes through EK-FAC twice (cold, warm) and
writes ``peer.json`` (seconds, memory) and ``peer.npz`` (factors, eigenvalues, scores).
"""

import argparse
import json
import os
import pathlib
import re
import time
import warnings

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

_IGNORED = -100


class NextToken(Task):
    """Summed loss of the supervised tokens; the labels are shifted already."""

    def compute_train_loss(self, batch, model, sample=False):
        """Σ over the batch."""
        assert not sample, "empirical Fisher only"
        logits = model(input_ids=batch["tokens"]).logits
        return cross_entropy(
            logits.flatten(0, 1),
            batch["labels"].flatten(),
            reduction="sum",
            ignore_index=_IGNORED,
        )

    def compute_measurement(self, batch, model):
        """A query's own loss."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self):
        """Names of the MLP kernels."""
        return self.modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--scores", choices=("pairwise", "aggregated"), default="pairwise")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    folder = arguments.folder
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # kronfluence's use of torch.cuda.amp
    case = json.loads((folder / "case.json").read_text())
    data = np.load(folder / "data.npz")
    on_cpu = arguments.device == "cpu"
    model = llama(case["model"], folder / "weights.npz").to("cpu" if on_cpu else "cuda")
    with torch.no_grad():
        first = torch.tensor(data["train_tokens"][:2], dtype=torch.long, device=model.device)
        logits = model(input_ids=first).logits.cpu()
    task = NextToken()
    task.modules = [n for n, _ in model.named_modules() if re.search(r"mlp\.(gate|up|down)_p", n)]
    analyzer = Analyzer(
        "peer",
        prepare_model(model, task),
        task,
        cpu=on_cpu,
        disable_tqdm=True,
        output_dir=str(folder / "kronfluence"),
    )
    before = memory("VmRSS") if on_cpu else torch.cuda.memory_allocated() / 2**20
    runs = []
    for _ in range(2):
        seconds, scores = ekfac(analyzer, case, data, arguments.scores)
        runs.append(seconds)
    peak = memory("VmHWM") if on_cpu else torch.cuda.max_memory_allocated() / 2**20
    measured = {"runs": runs, "start_mib": before, "peak_mib": peak}
    np.savez(folder / "peer.npz", logits=logits.numpy(), scores=scores, **factors(analyzer))
    (folder / "peer.json").write_text(json.dumps(measured))


def llama(sizes: dict, weights: pathlib.Path) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["d_model"],
        intermediate_size=sizes["d_ff"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_kv_heads"],
        head_dim=sizes["head_dim"],
        rope_parameters={"rope_type": "default", "rope_theta": sizes["rope_theta"]},
        rms_norm_eps=sizes["norm_eps"],
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval()
    tensors = {name: torch.tensor(x) for name, x in np.load(weights).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not set(missing) - {"lm_head.weight"}, missing
    assert not unexpected, unexpected
    return model


def ekfac(analyzer: Analyzer, case: dict, data, scores: str) -> tuple[dict[str, float], np.ndarray]:
    """Seconds of each phase, and Σ_q over each reference's queries of the scores: [R, N]."""
    train = examples(data, "train")
    queries, references = examples(data, "query"), case["references"]
    batch, per_reference = case["batch_size"], len(queries) // references
    factor_args = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
    common = dict(factor_args=factor_args, overwrite_output_dir=True)
    fit = dict(dataset=train, per_device_batch_size=batch, **common)

    def score(name: str, subset: list, **options) -> np.ndarray:
        analyzer.compute_pairwise_scores(
            name,
            "factors",
            subset,
            train,
            per_device_query_batch_size=batch,
            per_device_train_batch_size=batch,
            score_args=ScoreArguments(damping_factor=case["damping"], **options),
            overwrite_output_dir=True,
        )
        return analyzer.load_pairwise_scores(name)["all_modules"].numpy().astype(np.float64)

    clock = [time.perf_counter()]

    def lap() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    seconds = {}
    analyzer.fit_covariance_matrices("factors", **fit)
    seconds["factors"] = lap()
    analyzer.perform_eigendecomposition("factors", **common)
    seconds["eigenvectors"] = lap()
    analyzer.fit_lambda_matrices("factors", **fit)
    seconds["eigenvalues"] = lap()
    if scores == "pairwise":  # one pass over the training examples for all queries
        each = score("all", queries, query_gradient_accumulation_steps=-(-len(queries) // batch))
        summed = each.reshape(references, per_reference, -1).sum(1)
    else:  # one pass for each reference, one gradient in memory
        rows = [
            score(f"reference{i}", queries[i * per_reference :][:per_reference],
                  aggregate_query_gradients=True)
            for i in range(references)
        ]  # fmt: skip
        summed = np.concatenate(rows)
    seconds["scores"] = lap()
    return seconds, summed


def examples(data, kind: str) -> list[dict[str, torch.Tensor]]:
    tokens, targets = data[f"{kind}_tokens"], data[f"{kind}_targets"]
    labels = np.where(data[f"{kind}_weights"] > 0, targets, _IGNORED)
    return [
        {"tokens": torch.tensor(t, dtype=torch.long), "labels": torch.tensor(y, dtype=torch.long)}
        for t, y in zip(tokens, labels, strict=True)
    ]


def factors(analyzer: Analyzer) -> dict[str, np.ndarray]:
    """Means as kronfluence defines them, oriented like its weights (output, input)."""
    covariance = analyzer.load_covariance_matrices("factors")
    eigenvalues = analyzer.load_lambda_matrices("factors")
    kinds = {
        "inputs": (covariance, "activation_covariance", "num_activation_covariance_processed"),
        "outputs": (covariance, "gradient_covariance", "num_gradient_covariance_processed"),
        "eigenvalues": (eigenvalues, "lambda_matrix", "num_lambda_processed"),
    }
    return {
        f"{kind}/{name}": (total / source[count][name]).numpy()
        for kind, (source, sums, count) in kinds.items()
        for name, total in source[sums].items()
    }


def memory(field: str) -> float:
    """MiB that this process holds ("VmRSS") or has held at most ("VmHWM")."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) / 1024


if __name__ == "__main__":
    main()
