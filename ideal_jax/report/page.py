"""Puts the page together and writes it. The only part with side effects."""

import os
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from ideal_jax.errors import UserError
from ideal_jax.report import answer, matrix, rounds, scores, sections, speed, verification
from ideal_jax.report.load import Run, load


def write_report(workdir: Path) -> Path:
    """Writes ``<workdir>/report.html`` from the other files of the work directory.

    The page is one file that opens offline and needs no script; the same files give the same
    bytes. A run that is not finished is reported as far as it is.

    Args:
      workdir: of ``ideal-jax run``.

    Returns:
      The path of the page.

    Raises:
      UserError: the folder is missing, not a work directory, malformed or not writable.
    """
    workdir = Path(workdir)
    # A lone surrogate is legal in JSON text but not in UTF-8.
    content = render(load(workdir)).encode("utf-8", errors="replace")
    path = workdir / "report.html"
    partial = workdir / f".report.html.{os.getpid()}"
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make it writable"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def render(run: Run) -> str:
    """The page of a run as text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    some = bool(run.rounds)
    return environment.get_template("page.html").render(
        css=Markup(_source("page.css")),
        answer=answer.answer(run),
        finished=rounds.finished(run),
        progress=rounds.progress(run),
        planned=rounds.setting(run, "mixture", "rounds"),
        mixture=sections.mixture(run) if some else None,
        influence=matrix.influence(run),
        only_order=matrix.ONLY_ORDER,
        verifications=verification.verifications(run),
        scores=scores.task_scores(run),
        losses=scores.losses(run),
        curves=sections.curves(run),
        cost=sections.cost(run),
        speed=speed.speed(run),
        samples=sections.samples(run),
        setup=sections.setup(run),
    )


def _source(name: str) -> str:
    return (resources.files("ideal_jax.report") / name).read_text(encoding="utf-8")
