"""torch's side of ``training_throughput.py``: reads a kind of work a line, answers with JSON."""

import json
import os
import resource
import sys
import time

import numpy as np
import torch
import transformers


class Peer:
    """transformers' Llama with torch's fused attention and optimizer."""

    def __init__(self, given):
        self.given = given
        self.device = "cuda" if given["device"] == "gpu" else "cpu"
        torch.set_num_threads(os.cpu_count())
        if self.device == "cuda":
            self.model = random_llama(given, self.device)
        else:
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                given["folder"], dtype="auto", attn_implementation="sdpa"
            )
        self.rng = np.random.default_rng(0)
        self.optimizer = None

    def tokens(self, rows, length):
        """Random tokens, the same on both sides."""
        shape = (rows, length)
        tokens = self.rng.integers(0, self.model.config.vocab_size, shape, dtype=np.int32)
        return torch.from_numpy(tokens).long().to(self.device)

    def train(self):
        """Some optimizer steps; tokens per second."""
        given, model = self.given, self.model
        if self.optimizer is None:
            model.train()
            if given["remat"] != "none":
                model.gradient_checkpointing_enable()
            self.optimizer = torch.optim.AdamW(
                model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True
            )
            self.forward = torch.compile(model) if given["compile"] else model
        positions = torch.arange(given["length"], device=self.device)
        positions = positions % (given["length"] // given["packed"])
        positions = positions.expand(given["rows"], -1)
        # Without positions transformers needs no mask; with them it finds the packed examples.
        packing = {"position_ids": positions} if given["packed"] > 1 else {}
        started = time.perf_counter()
        for _ in range(given["steps"]):
            tokens = self.tokens(given["rows"], given["length"])
            labels = tokens.masked_fill(positions == 0, -100)  # what an example begins with
            loss = self.forward(tokens, labels=labels, use_cache=False, **packing).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        loss = float(loss)
        tokens = given["steps"] * given["rows"] * given["length"]
        return {"rate": tokens / (time.perf_counter() - started), "loss": loss}

    @torch.no_grad()
    def generate(self):
        """Greedy, from prompts of full length; new tokens per second."""
        self.model.eval()
        rows, new = self.given["rows"], 64
        prompts = self.tokens(rows, self.given["length"])
        started = time.perf_counter()
        out = self.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        int(out[0, -1])  # the device is done
        return {"rate": rows * new / (time.perf_counter() - started)}


def random_llama(given, device):
    """Parameters drawn on the device: float32 on a CPU, else bfloat16."""
    d, layers, heads, kv_heads, width, d_ff, vocabulary, tied = given["sizes"]
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        intermediate_size=d_ff,
        max_position_embeddings=max(given["length"], 8192),
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            attn_implementation="sdpa",
        )


def peak_gib(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    peer = Peer(json.loads(sys.argv[1]))
    for line in sys.stdin:
        result = getattr(peer, line.strip())()
        print(json.dumps({**result, "peak_gib": peak_gib(peer.device)}), flush=True)


if __name__ == "__main__":
    main()
