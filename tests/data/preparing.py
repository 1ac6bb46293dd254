"""What the tests of preparing have in common: options, and folders of raw domains."""

import json

from ml_collections import ConfigDict

SYNTHETIC = {"counts": "30,40,30,30,40", "noise": 0.4, "reference": 8, "test": 12}


MANY = {**SYNTHETIC, "counts": "30,9000,30,30,9000"}


def config(**changed):
    base = {
        "root": "",
        "domains": "",
        "tokenizer": "byte",
        "supervise": "all",
        "benchmarks": "",
        "decontaminate": False,
        "row_length": 64,
        "max_segments": 8,
        "window": 32,
        "reference_examples": 5,
        "test_examples": 5,
        "sources": {},
        "overlong": "truncate",
        "workers": 0,
        "cache": "",
        "synthetic": SYNTHETIC,
    }
    return ConfigDict({**base, **changed})


def write_domain(root, name, prompts):
    (root / name).mkdir(parents=True)
    for split, texts in (("train", prompts), ("reference", ["ref 0", "ref 1", prompts[0]])):
        lines = [{"id": f"{split}{i}", "prompt": t, "response": t} for i, t in enumerate(texts)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / name / f"{split}.jsonl").write_text(text)
