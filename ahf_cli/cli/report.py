"""`ahf report`: a study as a document in the form that others ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ahf_cli.cli.compare import Request, make
from ahf_cli.cli.options import DEFAULT_RESULTS, Json, Quiet, Results, emit_json, say, writing_to
from ahf_cli.cli.show import StudyName
from ahf_cli.errors import IncompleteError


def report(
    study: StudyName,
    kind: Annotated[
        Literal["mlrc"], typer.Option("--format", help="mlrc: sections of the ML Reproducibility Challenge.")
    ] = "mlrc",
    results: Results = DEFAULT_RESULTS,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Its folder; default: mlrc in the study's report."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a study as a reproducibility report in LaTeX, with all numbers from its data.

    An unfinished study is reported with its finished trials, and the exit code is 3.
    """
    from ahf_cli.report.reproduction import save_reproduction

    made = make(Request((study,), results, quiet=quiet), ())
    folder = out or made.out / kind
    with writing_to(folder, made.comparison.data.study.folder):
        files = save_reproduction(made.comparison, folder)
    if as_json:
        emit_json({"study": study, "format": kind, "files": [str(file) for file in files]})
    else:
        for file in files:
            say(str(file))
        say(f"next: cd {folder} && pdflatex {files[0].name}")
    if made.missing:
        raise IncompleteError(f"not finished: {'; '.join(made.missing)}; only finished trials are reported")
