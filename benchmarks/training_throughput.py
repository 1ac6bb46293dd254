"""Training, generation and influence: ours against transformers + torch on the same machine.

    python benchmarks/training_throughput.py [--smoke] [--what=train,generate,influence]
        [--device=cpu|gpu] [--shape=42m|llama3.2-1b|llama3-8b] [--rows=4] [--length=512]
        [--max-factor=8192]
        [--packed=1] [--attention=auto] [--remat=none] [--block=128]
        [--unroll=1] [--compile] [--malloc=plain|huge|keep] [--steps=3] [--repeats=7]

Both sides get a random Llama, the same tokens, AdamW with clipping and the same precision. Each is
a process of its own that warms up first. On CPU, in float32, the model is the same (a folder that
transformers writes once), both stay alive and take turns, and a ratio is that of two turns next to
each other. On GPU each draws its parameters on the device and one follows the other; parameters and
gradients are bfloat16, and so is the first moment, the second too in torch (ours is float32). torch
computes with scaled_dot_product_attention, a fused AdamW, as many threads as there are processors
and, if asked, torch.compile. Influence has no counterpart there. A process's peak is that of all it
has done.

MFU = FLOPs / seconds / peak, with 6·P + 6·L·N·H·T/packed FLOPs a token for training: P parameters
in matrix products (the output matrix is one, the embedding's look-up is none), and the lower
triangle of the attention scores within each of the ``packed`` examples of a row.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

SHAPES = {  # d_model, layers, heads, kv_heads, head_dim, d_ff, vocabulary, tied
    "tiny": (64, 2, 4, 2, 16, 128, 512, True),
    "42m": (512, 8, 8, 4, 64, 1536, 32000, True),
    "llama3.2-1b": (2048, 16, 32, 8, 64, 8192, 128256, True),
    "llama3-8b": (4096, 32, 32, 8, 128, 14336, 128256, False),
}
# glibc's, of both sides: as it comes; huge pages; huge pages that stay with the process.
HUGE = "glibc.malloc.hugetlb=1"
KEEP = "glibc.malloc.mmap_threshold=8000000000:glibc.malloc.trim_threshold=16000000000"
MALLOC = {"plain": "", "huge": HUGE, "keep": f"{HUGE}:{KEEP}:glibc.malloc.arena_max=1"}
SIDES = {"ours": "throughput_ours.py", "torch": "throughput_peer.py"}
HERE = pathlib.Path(__file__).parent


class Side:
    """A process that does one piece of work for every line it reads."""

    def __init__(self, name, arguments):
        tunables = MALLOC[arguments["malloc"]]
        environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", "GLIBC_TUNABLES": tunables}
        command = [sys.executable, str(HERE / SIDES[name]), json.dumps(arguments)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ask(self, work):
        """What it measured; ends the program if it died."""
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.process.args[1]} ended with {self.process.wait()} during {work}")

    def close(self):
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()


def main():
    arguments = parse()
    kinds = arguments.what.split(",")
    with tempfile.TemporaryDirectory() as folder:
        given = {**vars(arguments), "folder": folder, "sizes": SHAPES[arguments.shape]}
        if arguments.device == "cpu":
            from throughput_peer import random_llama

            random_llama(given, "cpu").save_pretrained(folder)
            found = {}
            for kind in kinds:
                found |= measure([kind], ["ours"] if kind == "influence" else list(SIDES), given)
        else:
            ours = measure(kinds, ["ours"], given)
            theirs = measure([kind for kind in kinds if kind != "influence"], ["torch"], given)
            found = {kind: ours[kind] | theirs.get(kind, {}) for kind in kinds}
    for kind, results in found.items():
        report(kind, results, arguments)


def measure(kinds, names, given):
    """{kind: {side: results in the order of measurement}}, all warm; the sides take turns."""
    sides = {name: Side(name, given) for name in names}
    found = {kind: {name: [] for name in names} for kind in kinds}
    for kind in kinds:
        for turn in range(1 + given["repeats"]):  # the first one compiles
            for name, side in sides.items():
                result = side.ask(kind)
                print(kind, name, f"turn {turn}", result, file=sys.stderr, flush=True)
                found[kind][name] += [result] if turn else []
    for side in sides.values():
        side.close()
    return found


def report(what, found, arguments):
    unit = {"train": "tokens/s", "generate": "new tokens/s", "influence": "s"}[what]
    print(f"\n{what}: {arguments.shape}, {arguments.rows} rows of {arguments.length}")
    for name, results in found.items():
        rates = [result["rate"] for result in results]
        line = f"  {name:6} {spread(rates)} {unit}, peak {results[-1]['peak_gib']:.2f} GiB"
        if what == "train":
            line += f", loss after the last step {results[-1]['loss']:.4f}"
            if arguments.peak_tflops:
                used = statistics.median(rates) * flops_per_token(arguments) / 1e12
                line += f", MFU {used / arguments.peak_tflops:.1%}"
        if "detail" in results[-1]:
            line += f" ({results[-1]['detail']})"
        print(line)
    if len(found) == 2:
        pairs = zip(found["ours"], found["torch"], strict=True)
        print(f"  ours / torch: {spread([a['rate'] / b['rate'] for a, b in pairs])}", flush=True)


def spread(values):
    return f"{statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"


def flops_per_token(arguments):
    d, layers, heads, kv_heads, width, d_ff, vocabulary, _ = SHAPES[arguments.shape]
    attention = d * width * (2 * heads + 2 * kv_heads)
    products = layers * (attention + 3 * d * d_ff) + d * vocabulary
    return 6 * products + 6 * layers * heads * width * arguments.length / arguments.packed


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, once: does it run?")
    parser.add_argument("--what", default="train")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="42m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--packed", type=int, default=1, help="examples in a row")
    parser.add_argument("--attention", default="auto", help="our kernel")
    parser.add_argument("--remat", default="none", help="ours; torch: checkpointing unless none")
    parser.add_argument("--block", type=int, default=128, help="our loss.block")
    parser.add_argument("--unroll", type=int, default=1, help="our model.unroll")
    parser.add_argument("--max-factor", type=int, default=8192, help="influence.max_factor")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--malloc", choices=MALLOC, default="plain")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device, for MFU")
    arguments = parser.parse_args()
    if arguments.smoke:
        small = {"shape": "tiny", "rows": 2, "length": 64, "packed": 2, "steps": 1, "repeats": 2}
        vars(arguments).update(small, what="train,generate,influence")
    return arguments


if __name__ == "__main__":
    main()
