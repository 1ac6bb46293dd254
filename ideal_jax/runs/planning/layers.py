"""What a decoder is made of, counted: scalars, factored layers, what a backward pass repeats."""

import re
from typing import Any

from ideal_jax.errors import UserError
from ideal_jax.influence.kfac import block_width
from ideal_jax.models import DecoderConfig
from ideal_jax.runs.cost import Matrix, dense_layers, left_out

# Parts of the forward pass that the backward pass computes again. The last product of a block is
# not among them: nothing needs its result. Logits are kept with "none" alone.
REPEATED: dict[str, tuple[str, ...]] = {
    "none": (),
    "dots": ("scores", "logits"),
    "full": ("q", "k", "v", "o", "gate", "up", "scores", "logits"),
    "offload": ("q", "k", "v", "o", "gate", "up", "scores", "logits"),
}


def layer_scalars(cfg: DecoderConfig) -> int:
    """Of a block's matrices."""
    return sum(i * o for i, o in dense_layers(cfg).values())


def outer_scalars(cfg: DecoderConfig) -> int:
    """Of embedding and output matrix."""
    return cfg.d_model * cfg.padded_vocab * (1 if cfg.tie_embeddings else 2)


def whole_scalars(cfg: DecoderConfig) -> int:
    """Of all matrices; norms and biases are less than a thousandth."""
    return cfg.n_layers * layer_scalars(cfg) + outer_scalars(cfg)


def trained_scalars(cfg: DecoderConfig) -> int:
    """Of what training changes: adapters, or everything."""
    if cfg.lora is None:
        return whole_scalars(cfg)
    covered = [size for path, size in dense_layers(cfg).items() if cfg.lora.covers(path)]
    return cfg.n_layers * cfg.lora.rank * sum(i + o for i, o in covered)


def repeated_flops(cfg: DecoderConfig, tokens: float, seen: float, parts: tuple[str, ...]) -> float:
    """FLOPs of computing ``parts`` of the forward pass of ``tokens`` tokens once more.

    Args:
      seen: positions that a token attends to, on average.
      parts: names of dense layers, "scores" (attention) and "logits".
    """
    each = {path.rsplit("/")[-1]: i * o for path, (i, o) in dense_layers(cfg).items()}
    each["scores"] = int(2 * seen * cfg.n_heads * cfg.head_dim)
    block = sum(each[part] for part in parts if part != "logits")
    logits = cfg.d_model * cfg.padded_vocab * ("logits" in parts)
    return 2.0 * tokens * (cfg.n_layers * block + logits)


def factored(cfg: DecoderConfig, layers: str, max_factor: int) -> list[Matrix]:
    """The dense layers with Kronecker factors, as ``decoder_problem`` chooses them.

    Those that read the same input come one after the other.

    Raises:
      UserError: there are none.
    """
    shapes = dict(dense_layers(cfg))
    if cfg.lora is not None:
        rank = cfg.lora.rank
        covered = {path: size for path, size in shapes.items() if cfg.lora.covers(path)}
        shapes = {f"{path}/lora_a": (i, rank) for path, (i, _) in covered.items()}
        shapes |= {f"{path}/lora_b": (rank, o) for path, (_, o) in covered.items()}
    elif not cfg.tie_embeddings and cfg.padded_vocab <= max_factor:
        shapes["head"] = (cfg.d_model, cfg.padded_vocab)
    pattern = {"all": "", "mlp": "/mlp/"}.get(layers, layers)
    found, inputs = [], set()
    reads = {path: re.sub("/(q|k|v|gate|up)(/lora_a)?$", "/normalised", path) for path in shapes}
    for path in sorted(shapes, key=lambda path: (reads[path], path)):
        if re.search(pattern, path):
            (i, o), read = shapes[path], reads[path]
            blocks = block_width(i, max_factor), block_width(o, max_factor)
            count = cfg.n_layers if path.startswith("layers/") else 1
            found.append(Matrix(count, i, o, blocks, read not in inputs))
            inputs.add(read)
    if not found:
        key = f"lora.target={cfg.lora.target!r}" if cfg.lora and not shapes else ""
        raise UserError(f"{key or f'influence.layers={layers!r}'} matches no dense layer")
    return found


def kept_alone(cfg: DecoderConfig, influence: Any) -> list[Matrix] | None:
    """The only matrices that gradients and solutions consist of; None: of every parameter."""
    if not left_out(influence):
        return None
    return factored(cfg, influence.layers, influence.max_factor)


def kept_scalars(cfg: DecoderConfig, influence: Any) -> int:
    """Of a gradient, and of a solution."""
    matrices = kept_alone(cfg, influence)
    return trained_scalars(cfg) if matrices is None else sum(m.scalars for m in matrices)
