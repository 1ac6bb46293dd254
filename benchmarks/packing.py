"""Conversations to packed rows: `ideal_jax.data` against `datasets.map` and TRL's packing.

    python benchmarks/packing.py [--examples=100000] [--processes=2] [--repeats=3]
        [--memory=25000,100000,200000]

Needs `pip install trl`. Both sides read the same JSONL with the same byte-level BPE tokenizer and
chat template, compute the mask of what the assistant says, keep the result on disk and pack it into
rows of the same length, in windows of 1000 examples. Each runs in a process of its own, in turn,
begins with empty caches and may use as many processes. `datasets.map` gets batches of 1000, which
is its faster way. Ours also drops train prompts that are in the reference set. "read" is every
packed row once: TRL's lie on disk, ours are put together from an index, as arrays for training.
"""

import argparse
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

ROW, SEGMENTS, WINDOW = 1024, 32, 1000
VOCABULARY = 4096


def write_conversations(path, count, seed):
    """Talks of 1–3 exchanges and about 250 tokens, words by Zipf's law, lengths log-normal."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(5000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]

    def say(mean):
        return " ".join(rng.choices(words, weights, k=max(1, int(rng.lognormvariate(mean, 0.7)))))

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for number in range(count):
            messages = []
            for _ in range(rng.choice((1, 1, 2, 3))):
                messages.append({"role": "user", "content": say(2.7)})
                messages.append({"role": "assistant", "content": say(3.6)})
            file.write(json.dumps({"id": f"{seed}/{number}", "messages": messages}) + "\n")


def train_tokenizer(raw, folder):
    from ideal_jax.data.sources import read_domain
    from ideal_jax.data.tokenizers import train_bpe

    records = read_domain(raw / "talk" / "reference.jsonl")
    texts = (message["content"] for record in records for message in record.messages)
    train_bpe(texts, VOCABULARY).save_pretrained(folder)


def ours(raw, tokenizer, work, processes):
    from ideal_jax import config as config_lib
    from ideal_jax.data import packed_rows, prepare, training_batches
    from ideal_jax.mixture import MixturePlan

    config = config_lib.load(pathlib.Path(__file__).parents[1] / "configs" / "base.py").data
    config.update(root=str(raw), tokenizer=str(tokenizer), row_length=ROW, test_examples=0)
    config.update(cache=str(work / "cache"), workers=processes)
    started = time.perf_counter()
    data = prepare(config, work / "data", 0)
    store = data.train["talk"]
    tokenized = time.perf_counter()
    sizes = (len(store),)
    table = packed_rows(MixturePlan(sizes, sizes, 0), [store], ROW, SEGMENTS, WINDOW)
    packed = time.perf_counter()
    batches = training_batches(
        table,
        [store],
        batch_size=16,
        row_length=ROW,
        max_segments=SEGMENTS,
        seed=0,
        reduction="token",
    )
    for step in range(len(table) // 16):
        batches[step]
    return {
        "seconds": packed - started,
        "read": time.perf_counter() - packed,
        "tokenize": tokenized - started,
        "pack": packed - tokenized,
        "examples": len(store),
        "tokens": int(store.lengths.sum()),
        "filled": table.filled,
    }


def peer(raw, tokenizer, work, processes):
    import datasets
    from transformers import AutoTokenizer
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    loaded = AutoTokenizer.from_pretrained(tokenizer)

    def tokenize(rows):
        found = loaded.apply_chat_template(
            rows["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        return {key: found[key] for key in ("input_ids", "assistant_masks")}

    started = time.perf_counter()
    rows = datasets.Dataset.from_json(str(raw / "talk" / "train.jsonl"), cache_dir=str(work))
    rows = rows.map(tokenize, batched=True, num_proc=processes, remove_columns=rows.column_names)
    tokenized = time.perf_counter()
    packed = pack_dataset(rows, ROW, "bfd", {"num_proc": processes, "batch_size": WINDOW})
    ended = time.perf_counter()
    for start in range(0, len(packed), 16):
        packed[start : start + 16]
    read = time.perf_counter()
    lengths = [sum(row) for row in packed["seq_lengths"]]
    return {
        "seconds": ended - started,
        "read": read - ended,
        "tokenize": tokenized - started,
        "pack": ended - tokenized,
        "examples": len(rows),
        "tokens": sum(map(len, rows["input_ids"])),
        "filled": sum(lengths) / ROW / len(lengths),
    }


def measured(side, raw, tokenizer, processes):
    """What one side says of itself, from a process of its own."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, __file__, f"--side={side}", f"--processes={processes}"]
        command += [f"--raw={raw}", f"--tokenizer={tokenizer}", f"--work={work}"]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(lines.splitlines()[-1])


def show(side, found):
    print(
        f"{side}: {found['examples'] / found['seconds']:.0f} examples/s, {found['filled']:.2%}"
        f" filled ({found['examples']} examples, {found['tokens']} tokens; tokenize"
        f" {found['tokenize']:.1f} s, pack {found['pack']:.2f} s, both {found['seconds']:.1f} s;"
        f" read {found['read']:.1f} s; {found['cpu']:.0f} s of processors;"
        f" peak {found['own_memory']} MB, largest worker {found['worker_memory']} MB)",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", default="25000,100000,200000")
    for name in ("side", "raw", "tokenizer", "work"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        paths = (pathlib.Path(getattr(given, name)) for name in ("raw", "tokenizer", "work"))
        found = {"ours": ours, "peer": peer}[given.side](*paths, given.processes)
        found["cpu"] = 0.0
        for key, who in (("own", resource.RUSAGE_SELF), ("worker", resource.RUSAGE_CHILDREN)):
            used = resource.getrusage(who)
            found[f"{key}_memory"] = used.ru_maxrss // 1024
            found["cpu"] += used.ru_utime + used.ru_stime
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        raw, tokenizer = pathlib.Path(folder) / "raw", pathlib.Path(folder) / "tokenizer"
        write_conversations(raw / "talk" / "reference.jsonl", 2000, seed=1)
        train_tokenizer(raw, tokenizer)
        write_conversations(raw / "talk" / "train.jsonl", given.examples, seed=0)
        speeds = {"ours": [], "peer": []}
        for _ in range(given.repeats):
            for side, speed in speeds.items():
                found = measured(side, raw, tokenizer, given.processes)
                show(side, found)
                speed.append(found["examples"] / found["seconds"])
        ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
        print(f"ours / peer: {', '.join(f'{ratio:.2f}' for ratio in ratios)}", flush=True)
        for count in filter(None, given.memory.split(",")):
            write_conversations(raw / "talk" / "train.jsonl", int(count), seed=0)
            show("ours", measured("ours", raw, tokenizer, given.processes))


if __name__ == "__main__":
    main()
