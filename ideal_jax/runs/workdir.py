"""The work directory: one run, one setting of the result keys, nothing half-written."""

import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax

from ideal_jax import config as config_lib
from ideal_jax import processes
from ideal_jax.errors import UserError

_PACKAGES = ("ideal-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


class WorkDir:
    """Paths and files of one run.

    Opening binds the folder to the config: an existing one with other result keys is refused.

    Raises:
      UserError: not writable, in use by another process, not a work directory, or of another
        config (names the changed keys).
    """

    def __init__(self, path: str | pathlib.Path, config: Any):
        self.path = pathlib.Path(path)
        self._lock: Any = None

        def open_it() -> None:
            self._refuse_strangers()
            self._claim()
            self._check(config)

        processes.writer_first(open_it)

    def round(self, index: int) -> pathlib.Path:
        """``rounds/NN``."""
        return self.path / "rounds" / f"{index:02d}"

    def describe(self, config: Any, command: str, mesh: jax.sharding.Mesh) -> None:
        """Writes ``config.json``: command, resolved config, versions, devices.

        Without a command, what is there stays: the record of a run is not that of a later look.
        """
        file = self.path / "config.json"
        if not command and file.exists():
            return
        devices = jax.devices()
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        versions["python"] = platform.python_version()
        write_json(
            file,
            {
                "command": command,
                "config": config.to_dict(),
                "versions": versions,
                "devices": {
                    "platform": devices[0].platform,
                    "kind": devices[0].device_kind,
                    "count": len(devices),
                    "processes": jax.process_count(),
                },
                "mesh": dict(mesh.shape),
            },
        )

    def _refuse_strangers(self) -> None:
        """Before anything is written: a folder that no run has claimed must be empty."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is a file; give a folder")
        found = {path.name for path in self.path.iterdir()} if self.path.exists() else set()
        if "config.json" in found:
            bound_config(self.path)
            return
        # The lock, and data/ behind it, are older than config.json: `data` leaves no more, and a
        # first start may die between.
        early = (
            {".lock", "data", "data_check", "config.json.partial"} if ".lock" in found else set()
        )
        if found - early:
            raise UserError(
                f"--workdir={self.path} holds {min(found - early)} but no config.json: not a work "
                "directory; choose another"
            )

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"--workdir={self.path}: cannot write there ({error.strerror})"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--workdir={self.path}: another process is running there") from None

    def _check(self, config: Any) -> None:
        if not (self.path / "config.json").exists():
            return
        lines = config_lib.changed(bound_config(self.path), config.to_dict())
        if lines:
            raise UserError(
                f"--workdir={self.path} belongs to another config ({'; '.join(lines)}); choose "
                "another --workdir or restore the value"
            )


def bound_config(folder: pathlib.Path) -> dict[str, Any]:
    """The config that a work directory belongs to.

    Raises:
      UserError: its ``config.json`` is not one of a work directory.
    """
    try:
        return dict(read_json(folder / "config.json")["config"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--workdir={folder}: its config.json is not one of an ideal-jax run; choose another"
        ) from None


def recorded_command(folder: pathlib.Path) -> str:
    """The command that a work directory was made with; "" if none is on record."""
    try:
        return str(read_json(folder / "config.json")["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def finished(folder: pathlib.Path, config: Any) -> dict[str, Any] | None:
    """``results.json`` if it is of this config and nothing is left to do. Only looks."""
    if not (folder / "config.json").is_file() or not (folder / "results.json").is_file():
        return None
    if config_lib.changed(bound_config(folder), config.to_dict()):
        return None
    results: dict[str, Any] = read_json(folder / "results.json")
    stopped = results["stopped"] and config.mixture.stop
    complete = stopped or len(results["rounds"]) == config.mixture.rounds + 1
    return results if results["status"] == "finished" and complete else None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically; process 0 only."""
    if not processes.is_writer():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text())
