"""`ahf leaderboard`: recipes of several fair studies in one table a task."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ahf_cli.cli import completion, options
from ahf_cli.cli.options import DEFAULT_RESULTS, Json, Results, emit_json, log, say
from ahf_cli.errors import AhfError, InputError

if TYPE_CHECKING:
    from ahf_cli.report.leaderboard import Leaderboard
    from ahf_cli.study.store import Study

Studies = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STUDY]...",
        help="Names or paths of studies, packed or not; default: all of --results and its reference.",
        autocompletion=completion.studies,
    ),
]
_BUDGET = "for the means; default: the least median total of a recipe in a table."
Work = Annotated[float | None, typer.Option("--at-work", metavar="W", help=f"Work {_BUDGET}")]
Seconds = Annotated[float | None, typer.Option("--at-seconds", metavar="S", help=f"Seconds {_BUDGET}")]
Target = Annotated[
    float | None,
    typer.Option("--target", metavar="X", help="Value for a draw to reach; default: 99 % of the best mean."),
]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the numbers to this file.")]
To = Annotated[
    Path | None,
    typer.Option("--to", metavar="DIR", help="Write leaderboard.csv, .png, .pdf and .html to this folder."),
]


def leaderboard(
    studies: Studies = None,
    results: Results = DEFAULT_RESULTS,
    at_work: Work = None,
    at_seconds: Seconds = None,
    target: Target = None,
    csv: Csv = None,
    to: To = None,
    as_json: Json = False,
) -> None:
    """Rank the recipes of finished fair studies, in one table for each task, length and code.

    Nothing is written without --csv or --to.
    """
    given = {"--at-work": at_work, "--at-seconds": at_seconds, "--target": target}
    for option, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{option} must be a number > 0, got {value:g}")
    if at_work is not None and at_seconds is not None:
        raise InputError("--at-work and --at-seconds must not both be given")
    found = _studies(studies or (), results)
    from ahf_cli.report.leaderboard import leaderboard as made

    budgets = {"work": at_work, "seconds": at_seconds}
    board = made(found, {k: v for k, v in budgets.items() if v is not None}, target)
    left_out = [f"left out: {line}" for line in board.left_out]
    if not board.groups:
        raise InputError(["no finished study of the design fair with re-runs", *left_out])
    for group in board.groups:
        options.check_target("--target", target, group.metric)
    files = _write(board, csv, to)
    if as_json:
        emit_json({**board.document, "files": [str(file) for file in files]})
    else:
        for group in board.groups:
            options.print_tables({group.title: group.text})
            say("\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in group.notes) + "\n")
        say("\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in board.notes))
        for line in (*left_out, *map(str, files)):
            say(line)
    for problem in board.problems:
        log(f"damaged: {problem}")


def _studies(names: Sequence[str], results: Path) -> dict[str, Study]:
    """Return studies by label: the name within the results folder, or the path of a study of elsewhere.

    Raises InputError with one line for each unknown name.
    """
    from ahf_cli.study.find import check_results, find_study, study_names

    if not names:
        check_results(results)
    found: dict[Path, tuple[str, Study]] = {}
    unknown: list[str] = []
    home = results.resolve()
    for name in names or study_names(results):
        try:
            study = find_study(results, name)
        except AhfError as error:
            unknown += error.lines
            continue
        own = study.folder.resolve()
        found.setdefault(own, (str(own.relative_to(home)) if own.is_relative_to(home) else name, study))
    if unknown:
        raise InputError(unknown)
    return {label: study for label, study in found.values() if names or not _single(study)}


def _single(study: Study) -> bool:
    """Return whether a study is one run of `ahf train`, which has hyperparameters of its own."""
    try:
        return "params" in study.manifest().get("identity", {})
    except AhfError:
        return False


def _write(board: Leaderboard, csv: Path | None, to: Path | None) -> list[Path]:
    """Write the requested files, and return them."""
    from ahf_cli.study.files import SUMMARY_DIGITS, atomic_write, csv_bytes

    table = csv_bytes(board.numbers, SUMMARY_DIGITS)
    contents = {} if csv is None else {csv: table}
    if to is not None:
        from ahf_cli.report.canvas import THEMES, make
        from ahf_cli.report.leaderboard import drawing
        from ahf_cli.report.page import board_page

        picture = make(drawing(board), THEMES["screen"])
        contents |= {to / "leaderboard.csv": table, to / "leaderboard.png": picture.written("png")}
        contents |= {to / "leaderboard.pdf": picture.written("pdf")}
        contents |= {to / "leaderboard.html": board_page(board, picture).encode()}
    for file, content in contents.items():
        with options.writing_to(file.parent, option="--csv" if file == csv else "--to"):
            atomic_write(file, content)
    return list(contents)
