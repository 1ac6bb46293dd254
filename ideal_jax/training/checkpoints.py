"""Checkpoints: Orbax, asynchronous, atomic, restored into the shardings asked for."""

import json
import os
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from ideal_jax import processes
from ideal_jax.data.tokenizers import files_digest
from ideal_jax.errors import UserError
from ideal_jax.landing import landing
from ideal_jax.models import Decoder, DecoderConfig


class Checkpoints:
    """The checkpoints of one training run under one folder.

    A checkpoint is composite: ``state`` (a pytree of arrays) and ``progress`` (a small JSON:
    where the data stands and what has been counted). A half-written one is never seen: Orbax
    renames it into place when it is complete.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 1):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Steps done at the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts saving; training may go on at once."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
        )
        self._manager.save(step, args=args, force=True)

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint.

        Args:
          abstract: tree of ``jax.ShapeDtypeStruct`` with the shardings to restore into.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        found = self._manager.restore(self._manager.latest_step(), args=args)
        return found.state, found.progress

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract_like(tree: Any, shardings: Any) -> Any:
    """``jax.ShapeDtypeStruct``s with shardings, as ``Checkpoints.restore`` wants them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def save_model(
    folder: pathlib.Path, model: Decoder, params: Any, tokenizer: pathlib.Path, base: str = ""
) -> None:
    """Writes final parameters with the model beside them: a ``model.init`` for other runs.

    Args:
      folder: gets ``params/``, ``tokenizer/`` and ``model.json``, which is written last.
      model: the decoder.
      params: what was trained of it.
      tokenizer: the folder of the tokenizer whose ids it knows.
      base: where the rest of its parameters are, if ``params`` are adapters: a name on the hub, or
        a folder, seen from this one if it starts with a dot.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").absolute(), params, force=True)
    if processes.is_writer():
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
        with landing(folder / "tokenizer") as partial:
            shutil.copytree(tokenizer, partial)
        known = {
            "config": model.cfg.to_json(),
            "origin": model.origin,
            "base": base,
            "tokenizer": files_digest(folder / "tokenizer"),
        }
        partial = folder / "model.json.partial"
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(folder / "model.json")


def saved_model(folder: pathlib.Path) -> tuple[Decoder, str]:
    """(model, base) as ``save_model`` was given them; a folder as base is seen from here.

    Raises:
      UserError: nothing complete is there.
    """
    known = _known(folder)
    try:
        model, base = (
            Decoder(DecoderConfig.of_json(known["config"]), known["origin"]),
            known["base"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'model.json'} is no description of a model: {error!r}"
        ) from None
    return model, os.path.abspath(folder / base) if base.startswith(".") else base


def saved_tokenizer(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the tokenizer of a saved model; None: an older version saved it without.

    Raises:
      UserError: no model is there, or its tokenizer has been changed.
    """
    digest = _known(folder).get("tokenizer")
    if digest is None:
        return None
    if files_digest(folder / "tokenizer") != digest:
        raise UserError(
            f"{folder / 'tokenizer'} is not what was saved with the model; restore it, and give "
            "another chat template with data.tokenizer"
        )
    return folder / "tokenizer"


def _known(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "model.json"
    try:
        return dict(json.loads(file.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"model.init={folder} holds no finished model (model.json); give the base/ or "
            "rounds/NN folder of another run, or a folder of Hugging Face"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is no description of a model: {error!r}") from None


def load_params(folder: pathlib.Path, abstract: Any) -> Any:
    """Parameters written by ``save_model``, into the dtypes and shardings of ``abstract``."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((folder / "params").absolute(), abstract)
