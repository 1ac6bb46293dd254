"""The work directory: one run, one setting of the result keys, nothing half-written."""

import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from ideal_jax import config as config_lib
from ideal_jax import processes, sealed
from ideal_jax.errors import UserError

_OF_A_ROUND = ("mixture.json", "train.json", "speed.json", "evaluation.json", "influence.json")
_PACKAGES = ("ideal-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")

# Nothing depends on these before influence is measured: where a first solve fails, the same command
# goes on with other values, and trains nothing again.
_UNTIL_MEASURED = frozenset(
    {
        "influence.curvature_examples",
        "influence.damping",
        "influence.damping_mode",
        "influence.estimator",
        "influence.inversion",
        "influence.iterations",
        "influence.layers",
        "influence.tolerance",
        "influence.uncovered",
    }
)
_MEASURED = (
    "rounds/*/influence.json",
    "influence/influence.json",
    "verify/*/*/influence_*.json",
)


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

    def describe(self, config: Any, command: str, mesh: jax.sharding.Mesh, data: str) -> None:
        """Writes ``config.json``: command, resolved config, versions, devices, digest of the data.

        Without a command, what is there stays: the record of a run is not that of a later look.

        Raises:
          UserError: the digest was another.
        """
        file = self.path / "config.json"
        known = _config_json(self.path) if file.exists() else {}
        if known.get("data_sha256", data) != data:
            raise UserError(
                f"{self.path / 'data'} was made again, and its sources have changed since; restore "
                "them, or choose another --workdir"
            )
        if known and not command:
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
                "data_sha256": data,
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
        if not any(found for pattern in _MEASURED for found in self.path.glob(pattern)):
            lines = [line for line in lines if line.split(":")[0] not in _UNTIL_MEASURED]
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
    return dict(_config_json(folder)["config"])


def _config_json(folder: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / "config.json").read_bytes())
        dict(value["config"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"--workdir={folder}: its config.json is not one of an ideal-jax run, or damaged; "
            "restore it, or choose another"
        ) from None
    if sealed.SEAL in value and not sealed.is_whole(value):
        raise UserError(
            f"--workdir={folder}: its config.json is damaged; restore it, or choose another"
        )
    return dict(value)


def recorded_command(folder: pathlib.Path) -> str:
    """The command that a work directory was made with; "" if none is on record."""
    if not (folder / "config.json").is_file():
        return ""
    return str(_config_json(folder).get("command", ""))


def finished(folder: pathlib.Path, config: Any) -> dict[str, Any] | None:
    """``results.json`` if it is of this config and nothing is left to do. Only looks.

    A damaged record of the run is to be made again.
    """
    if not (folder / "config.json").is_file() or not (folder / "results.json").is_file():
        return None
    if config_lib.changed(bound_config(folder), config.to_dict()):
        return None
    if any_damaged([folder / "results.json", *_records(folder)]):
        return None
    results = read_json(folder / "results.json")
    stopped = results["stopped"] and config.mixture.stop
    complete = stopped or len(results["rounds"]) == config.mixture.rounds + 1
    return results if results["status"] == "finished" and complete else None


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes a sealed JSON file atomically; process 0 only."""
    if not processes.is_writer():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(sealed.seal(value), file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """What ``write_json`` wrote.

    Raises:
      DamagedError: it is not what was written.
    """
    return sealed.read(path)


def known(path: pathlib.Path, then: str = "it is made again") -> dict[str, Any] | None:
    """What ``write_json`` wrote, or None if it is to be made (again); in every process the same.

    Args:
      path: of the file.
      then: said of a damaged one.
    """
    found = sealed.whole(path, then) if processes.is_writer() else None
    if not processes.agree(found is not None):
        return None
    return found or read_json(path)


def any_damaged(files: Iterable[pathlib.Path]) -> bool:
    """Whether one of the files is there and not what was written; in every process the same."""
    return processes.agree(processes.is_writer() and bool(_damaged(files)))


def refuse_damaged(folder: pathlib.Path) -> None:
    """For what only reads the records of a run.

    Raises:
      DamagedError: one of them is damaged; names it.
    """
    for path in _damaged([folder / "results.json", *_records(folder)]):
        raise sealed.DamagedError(f"{path} is damaged; ideal-jax run makes it again")


def refuse_damaged_checks(folder: pathlib.Path, but: str = "") -> None:
    """The same for what ``verify`` has found, but for files of the name ``but``."""
    files = (folder / "verify").glob("*/*.json")
    for path in _damaged(file for file in files if file.name != but):
        raise sealed.DamagedError(
            f"{path} is damaged; ideal-jax verify makes it again, or remove it"
        )


def _records(folder: pathlib.Path) -> list[pathlib.Path]:
    """What a run has noted of its trainings."""
    files = sorted((folder / "rounds").glob("*/*.json"))
    return [folder / "base" / "train.json", *(file for file in files if file.name in _OF_A_ROUND)]


def _damaged(files: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    return [path for path in files if path.exists() and not _is_whole(path)]


def _is_whole(path: pathlib.Path) -> bool:
    try:
        read_json(path)
    except (sealed.DamagedError, OSError):
        return False
    return True
