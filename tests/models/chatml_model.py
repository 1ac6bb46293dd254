"""A tiny Hugging Face model with a tokenizer of its own: byte-level BPE, and ChatML around it."""

import json
import random

import tokenizers
import torch
import transformers

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml_tokenizer(size, seed=0):
    """``size`` tokens: bytes, merges of random and of common words, ChatML's."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 8))) for _ in range(size)]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - len(SPECIALS),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    common = ("system", "user", "assistant", "train", "reference", "test", "return", "is", "four")
    backend.train_from_iterator([*words, *(f"{word} {word}" for word in common * 9)], trainer)
    backend.add_special_tokens(SPECIALS)  # behind the words, as Qwen has them
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    assert len(tokenizer) == size
    return tokenizer


def save_chatml_model(folder, size=400, seed=0):
    """A random Qwen3 of one layer that knows ``size`` tokens, with its tokenizer beside it."""
    tokenizer = chatml_tokenizer(size, seed)
    config = transformers.Qwen3Config(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.model.norm.weight.fill_(4.0)  # logits far enough apart to be learnt in a few steps
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_domains(root, answers, sizes=(24, 8, 4)):
    """A domain for every (name, answer): rows that ask something and get that answer."""
    for name, answer in answers.items():
        (root / name).mkdir(parents=True)
        for split, size in zip(("train", "reference", "test"), sizes, strict=True):
            rows = ({"prompt": f"{name} {split} {i}?", "response": answer} for i in range(size))
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (root / name / f"{split}.jsonl").write_text(text)
