"""Checkpoints: Orbax, asynchronous, atomic, restored into the shardings asked for."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from ideal_jax import processes
from ideal_jax.errors import UserError
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


def save_model(folder: pathlib.Path, model: Decoder, params: Any, base: str = "") -> None:
    """Writes final parameters with the model beside them: a ``model.init`` for other runs.

    Args:
      folder: gets ``params/`` and ``model.json``.
      model: the decoder.
      params: what was trained of it.
      base: where the rest of its parameters are, if ``params`` are adapters.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").absolute(), params, force=True)
    if processes.is_writer():
        known = {"config": model.cfg.to_json(), "origin": model.origin, "base": base}
        partial = folder / "model.json.partial"
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(folder / "model.json")


def saved_model(folder: pathlib.Path) -> tuple[Decoder, str]:
    """(model, base) as ``save_model`` was given them.

    Raises:
      UserError: nothing complete is there.
    """
    file = folder / "model.json"
    try:
        known = json.loads(file.read_text())
        cfg = DecoderConfig.of_json(known["config"])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"model.init={folder} holds no finished model (model.json); give the base/ or "
            "rounds/NN folder of another run, or a folder of Hugging Face"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no description of a model: {error!r}") from None
    return Decoder(cfg, known["origin"]), known["base"]


def load_params(folder: pathlib.Path, abstract: Any) -> Any:
    """Parameters written by ``save_model``, into the dtypes and shardings of ``abstract``."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((folder / "params").absolute(), abstract)
