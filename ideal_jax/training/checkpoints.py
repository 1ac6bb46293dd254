"""Checkpoints: Orbax, asynchronous, atomic, restored into the shardings asked for, checked."""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp

from ideal_jax import processes, sealed, sharding, trees
from ideal_jax.data.tokenizers import files_digest
from ideal_jax.errors import UserError
from ideal_jax.landing import landing
from ideal_jax.models import Decoder, DecoderConfig


class Checkpoints:
    """The checkpoints of one training run under one folder.

    A checkpoint is composite: ``state`` (a pytree of arrays) and ``progress`` (a small JSON:
    where the data stands, what has been counted, and the state's fingerprint). A half-written one
    is never seen: Orbax renames it into place when it is complete. Two are kept, as one may be
    damaged.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts saving; training may go on at once."""
        known = sealed.seal({**progress, "step": step, "state": _fingerprint(state)})
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(known)
        )
        self._manager.save(step, args=args, force=True)

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, progress with "step") of the newest whole checkpoint; None if there is none.

        Damaged ones are removed, which is said.

        Args:
          abstract: tree of ``jax.ShapeDtypeStruct`` with the shardings to restore into.
        """
        steps = sorted(self._manager.all_steps())
        while steps:
            step = steps.pop()
            found = self._read(step, abstract)
            if found is not None:
                return found
            then = f"that of step {steps[-1]} is used" if steps else "training starts again"
            sealed.tell(f"{self._folder / str(step)} is damaged: {then}")
            self._manager.delete(step)
        return None

    def _read(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        folder = self._folder / str(step)
        state = _read_tree(folder / "state", abstract)
        try:
            progress = sealed.read(folder / "progress" / "metadata")
        except (FileNotFoundError, sealed.DamagedError):
            progress = {}
        if not processes.everywhere(state is not None and progress.get("step") == step):
            return None
        return (state, progress) if _fingerprint(state) == progress.pop("state") else None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract_like(tree: Any, shardings: Any) -> Any:
    """``jax.ShapeDtypeStruct``s with shardings, as ``Checkpoints.restore`` wants them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _fingerprint(tree: Any) -> str:
    """SHA-256 of ``trees.fingerprint`` and the names, dtypes and shapes of the leaves."""
    sha = hashlib.sha256(sharding.fetch(trees.fingerprint(tree)).tobytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sha.update(f"{jax.tree_util.keystr(path)}:{leaf.dtype}:{leaf.shape};".encode())
    return sha.hexdigest()


def _read_tree(folder: pathlib.Path, abstract: Any) -> Any:
    """Arrays that Orbax wrote; None if this process cannot read them.

    Not by Orbax's checkpointer: there the processes that can would wait for those that cannot.
    """
    handler = ocp.StandardCheckpointHandler()
    try:
        return handler.restore(folder, args=ocp.args.StandardRestore(abstract))
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # says nothing of the files
    except Exception:  # whatever a reader makes of damaged bytes
        _hush()
        return None


def _hush() -> None:
    """Nothing is printed of the reads beside a failed one, which Orbax leaves unfinished."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(told: Any) -> None:
        code = getattr(told.object, "cr_code", None)
        ours = "orbax" in getattr(code, "co_filename", "")
        if not ours and str(told.exc_value) != "Event loop is closed":
            before(told)

    sys.unraisablehook = hook


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
    write_params(folder, params)
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


def write_params(folder: pathlib.Path, params: Any) -> None:
    """Writes ``params/`` of a folder; what was there goes."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").absolute(), params, force=True)


def saved_model(folder: pathlib.Path) -> tuple[Decoder, str]:
    """(model, base) as ``save_model`` was given them; a folder as base is seen from here.

    Raises:
      UserError: nothing complete is there.
    """
    known = _known(folder)
    model, base = Decoder(DecoderConfig.of_json(known["config"]), known["origin"]), known["base"]
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
    """What ``save_model`` wrote down."""
    file = folder / "model.json"
    try:
        known = dict(json.loads(file.read_text()))
        DecoderConfig.of_json(known["config"]), known["origin"], known["base"].startswith(".")
        return known
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"model.init={folder} holds no finished model (model.json); give the base/ or "
            "rounds/NN folder of another run, or a folder of Hugging Face"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise sealed.DamagedError(
            f"{file} is no description of a model; restore it, or train that run again"
        ) from None


def load_params(folder: pathlib.Path, abstract: Any, digest: str = "") -> Any:
    """Parameters written by ``save_model``, into the dtypes and shardings of ``abstract``.

    Args:
      folder: that has ``params/``.
      abstract: tree of ``jax.ShapeDtypeStruct`` with shardings.
      digest: ``trees.digest`` of what was written; "": not known.

    Raises:
      DamagedError: they cannot be read, or have another digest; names the folder.
    """
    target = (folder / "params").absolute()
    written = _read_tree(target, _as_written(target, abstract))
    if not processes.everywhere(written is not None):
        raise sealed.DamagedError(f"{target} is damaged: it cannot be read")
    if digest and trees.digest(sharding.fetch(written)) != digest:
        raise sealed.DamagedError(f"{target} is damaged: it is not what train.json says")
    return jax.tree.map(lambda x, like: x.astype(like.dtype), written, abstract)


def _as_written(folder: pathlib.Path, abstract: Any) -> Any:
    """``abstract`` with the dtypes that were written, of which the digest is."""
    try:
        written = ocp.StandardCheckpointHandler().metadata(folder).tree
        return jax.tree.map(
            lambda like, x: jax.ShapeDtypeStruct(like.shape, x.dtype, sharding=like.sharding),
            abstract,
            written,
        )
    except Exception:  # to be told by reading
        return abstract
