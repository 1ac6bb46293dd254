"""The tensors of a Hugging Face folder, read slice by slice from its safetensors files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ideal_jax.errors import UserError


class SafetensorsFolder:
    """All tensors of a folder by name; nothing is read before it is asked for.

    Raises:
      UserError: no safetensors, a file that the index names is missing, or one is damaged, the
        index too.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, Any] = {}  # tensor name -> open file
        for path in self._paths():
            try:
                file = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path}: not readable as safetensors: {error}; download it again"
                ) from error
            self._files.update(dict.fromkeys(file.keys(), file))

    def __iter__(self) -> Any:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
          UserError: there is none of this name.
        """
        if name not in self._files:
            raise UserError(f"{self.folder} holds no tensor {name}; the checkpoint is incomplete")
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str, index: Sequence[slice]) -> np.ndarray:
        """Part of a tensor, ``start:stop`` of each axis; what lies beyond its end is zero."""
        kept = self._files[name].get_slice(name)
        inside, beyond = [], []
        for part, size in zip(index, kept.get_shape(), strict=True):
            inside.append(slice(min(part.start, size), min(part.stop, size)))
            beyond.append((0, (part.stop - part.start) - (inside[-1].stop - inside[-1].start)))
        found = kept[tuple(inside)]
        return np.pad(found, beyond) if any(after for _, after in beyond) else found

    def _paths(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            names = _named_files(index)
            missing = [name for name in names if not (self.folder / name).is_file()]
            if missing:
                raise UserError(f"{index} names {missing[0]}, which is not there; download it")
            return [self.folder / name for name in names]
        if (single := self.folder / "model.safetensors").exists():
            return [single]
        raise UserError(
            f"{self.folder} holds no model.safetensors; save the model with "
            "save_pretrained(…, safe_serialization=True)"
        )


def _named_files(index: Path) -> list[str]:
    """The files that an index tells of."""
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{index}: not readable as JSON: {error}; download it again") from error
    files = values.get("weight_map") if isinstance(values, dict) else None
    named = list(files.values()) if isinstance(files, dict) else []
    if not named or not all(isinstance(name, str) for name in named):
        raise UserError(f"{index}: has no weight_map from tensors to files; download it again")
    return sorted(set(named))


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file that others may read as they may any new file."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})  # readable by its owner alone
    path.chmod(mode)
