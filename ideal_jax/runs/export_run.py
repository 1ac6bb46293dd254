"""The chosen model as a Hugging Face folder, and its adapters as a PEFT folder."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from ideal_jax import config as config_lib
from ideal_jax import processes, sealed
from ideal_jax.data.chat import end_of_turn
from ideal_jax.errors import UserError
from ideal_jax.mixture import MixturePlan
from ideal_jax.models import check_export, lora, save_hf, save_peft
from ideal_jax.models.peft import name_base
from ideal_jax.runs import cluster
from ideal_jax.runs.base_model import Start, frozen_folder, is_ours, trained_in
from ideal_jax.runs.influence_options import check_influence
from ideal_jax.runs.session import Session, open_session
from ideal_jax.runs.train_run import train_round
from ideal_jax.runs.workdir import (
    WorkDir,
    finished,
    known,
    read_json,
    refuse_damaged,
    write_json,
)


def export_run(config: Any, workdir: str | pathlib.Path, *, command: str = "") -> pathlib.Path:
    """Writes the best round of a finished run: see ``export_best``.

    Raises:
      UserError: the run is not finished, or the config names what does not exist.
    """
    config_lib.check(config)
    check_influence(config)
    cluster.initialise()
    folder = pathlib.Path(workdir)
    refuse_damaged(folder)
    results = finished(folder, config)
    if results is None:
        if (folder / "config.json").exists():
            WorkDir(folder, config)  # refuses another config, and says what differs
        raise UserError(f"--workdir={folder}: the run is not finished; run it first")
    return export_best(folder, results, lambda: open_session(config, folder, command))


def try_export(session: Session) -> None:
    """Whether everything beside the parameters can be written at the end of the run.

    Raises:
      UserError: says what cannot.
    """
    tokenizer = session.data.tokenizer
    check_export(session.whole_model, tokenizer, end_of_turn(tokenizer))


def export_best(
    folder: pathlib.Path, results: dict[str, Any], session: Callable[[], Session]
) -> pathlib.Path:
    """Writes ``export/``, and ``adapter/`` where adapters were trained, of the best round.

    Adapters of a model that is none of Hugging Face come with it: ``adapter_base/``.

    What is there of this round stays; what is there of another, before rounds were added, goes.

    Args:
      folder, results: of the run.
      session: opens it, if there is something to do.

    Returns:
      The path of ``export/``.
    """
    best = results["rounds"][results["best_round"]]
    record = {name: best[name] for name in ("round", "params_sha256")}
    written = folder / "export.json"
    found = known(written, "the model is exported again")
    if not processes.agree((folder / "export").exists() and found == record):
        if processes.is_writer():
            for name in ("export", "adapter", "adapter_base"):
                shutil.rmtree(folder / name, ignore_errors=True)
        _export(session(), best["round"])
        write_json(written, record)
    if processes.is_writer():
        if (folder / "adapter_base").exists():  # the work directory may have moved
            name_base(folder / "adapter", str((folder / "adapter_base").absolute()))
        print(f"model: {folder / 'export'}")
    return folder / "export"


def _export(session: Session, best: int) -> None:
    model, source = session.model, session.workdir.round(best)
    try:
        trained = trained_in(source, session.config, model, session.mesh)
    except sealed.DamagedError as error:
        sealed.tell(f"{error}; it is made again")
        trained = _again(session, best)
    with session.reporter.phase("export") as advance:
        advance(0, None, f"round {best}")
        folder, tokenizer = session.workdir.path, session.data.tokenizer
        if model.cfg.lora is not None:
            base = frozen_folder(str(source))
            if is_ours(base):
                save_hf(folder / "adapter_base", session.whole_model, trained.frozen, tokenizer)
                base = str((folder / "adapter_base").absolute())
            save_peft(folder / "adapter", model, trained.params, base)
        whole = lora.merged(model.cfg, trained.frozen, trained.params)
        end_id = end_of_turn(tokenizer)
        save_hf(folder / "export", session.whole_model, whole, tokenizer, end_id=end_id)


def _again(session: Session, number: int) -> Start:
    """The parameters of a round from its checkpoints, or by training it again."""
    folder = session.workdir.round(number)
    counts = [domain["count"] for domain in read_json(folder / "mixture.json")["domains"]]
    sizes = tuple(int(size) for size in session.given.available)
    plan = MixturePlan(sizes, tuple(counts), session.config.seed)
    trained = train_round(session, plan, folder, f"round {number}: train", rewrite=True)
    return Start(trained.params, trained.frozen)
