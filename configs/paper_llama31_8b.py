"""IDEAL's own experiment (arXiv 2505.12762): Llama-3.1-8B, all parameters, four domains.

    ideal-jax plan --config=configs/paper_llama31_8b.py --topology=v5e:4x8
    launch/reproduce_paper.sh --data=FOLDER --workdir=DIR --machine=v5e:4x8 [-- LAUNCHER …]

From the paper and its authors' code: base model, domains, m = 0.15, σ = 0.5, two updates, one or
three epochs, growing volume, no damping of what counts as important, Kronecker factors of the MLP
layers, benchmarks. What is marked "chosen" is in none of the sources. ``…py:v5e:4x8,3`` trains
three epochs.

By formula, a device's memory and a whole run (`ideal-jax plan`):

    v5e:4x8    11.6 of  14.9 GiB,  3.29 s/step,  79,697 tokens/s, MFU 59%, run  1.3 h
    h200:8     81.8 of 131.1 GiB,  3.02 s/step,  86,795 tokens/s, MFU 51%, run  0.6 h
"""

from ml_collections import ConfigDict

from ideal_jax.config import shipped


def get_config(machine: str = "v5e:4x8") -> ConfigDict:
    machine, _, epochs = machine.partition(",")
    c = shipped(f"llama3_8b:{machine}")
    c.data.domains = "math,code,reasoning,instruction"
    c.data.row_length = 2048  # chosen; the code's influence reads 256 tokens of an example
    c.mixture.examples = 66000  # or all there are; their shares are chosen: natural proportions
    c.mixture.rounds = 2
    c.mixture.step = 0.15
    c.mixture.keep_total = False
    c.mixture.stop = False
    c.training.epochs = float(epochs or 1)
    c.training.batch_size = 128  # chosen
    c.training.learning_rate = 1e-5  # chosen
    c.training.schedule = "cosine"  # chosen
    c.training.warmup = 0.03  # chosen
    c.influence.estimator = "kfac"
    c.influence.layers = "mlp"
    c.influence.fraction = 0.5
    c.influence.uncovered = "drop"
    c.influence.damping = 0.1  # chosen: the code has 0, which the inverse does not bear
    c.influence.reference_examples = 512  # chosen
    c.eval.tasks = "exact_match"  # GSM8K, HumanEval, BBH and IFEval in the paper
    c.plan.examples = 66000
    c.plan.example_tokens = 400  # chosen
    return c
