"""Checkpoints: Orbax, asynchronous, atomic, restored into the shardings asked for."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from ideal_jax.errors import UserError


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


def save_params(folder: pathlib.Path, params: Any, shape: dict[str, Any]) -> None:
    """Writes final parameters (a reusable ``model.init``) with the model's shape beside them."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").absolute(), params, force=True)
    if jax.process_index() == 0:
        partial = folder / "model.json.partial"
        partial.write_text(json.dumps(shape, indent=1))
        partial.replace(folder / "model.json")


def check_params(folder: pathlib.Path, shape: dict[str, Any]) -> None:
    """Whether ``load_params`` will find what it wants.

    Raises:
      UserError: nothing complete is there, or it is of another shape.
    """
    try:
        found = json.loads((folder / "model.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"model.init={folder} holds no finished model (model.json); give the base/ folder of "
            "another run"
        ) from None
    for key, value in shape.items():
        if found.get(key) != value:
            raise UserError(f"{folder}/model.json has {key}={found.get(key)}, not {value}")


def load_params(folder: pathlib.Path, abstract: Any, shape: dict[str, Any]) -> Any:
    """Parameters written by ``save_params``, into the shardings of ``abstract``.

    Raises:
      UserError: as ``check_params``.
    """
    check_params(folder, shape)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((folder / "params").absolute(), abstract)
