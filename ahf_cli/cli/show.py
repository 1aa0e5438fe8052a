"""`ahf show`: the course and the end of a trial."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahf_cli.cli import completion
from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    Device,
    Json,
    Quiet,
    Results,
    emit_json,
    log,
    print_tables,
    say,
    writing_to,
)
from ahf_cli.errors import IncompleteError, InputError
from ahf_cli.recipes.hyperparameters import nearest

if TYPE_CHECKING:
    from ahf_cli.study.store import Study

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="The study's name or path.", autocompletion=completion.studies)
]
TrialName = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE/SLOT]",
        help="One trial, such as hf/003; default: all of them.",
        autocompletion=completion.trials,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder of the figure; default: report in the study's."),
]
Prerun = Annotated[bool, typer.Option("--prerun", help="Show trials of the study's pre-run.")]


def show(
    study: StudyName,
    trial: TrialName = None,
    results: Results = DEFAULT_RESULTS,
    prerun: Prerun = False,
    out: Out = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Explain the end of a trial in words and one figure; without RECIPE/SLOT, list all trials."""
    del device, quiet  # taken by every command
    from ahf_cli.study.find import find_study

    found = find_study(results, study)
    found = found.prerun if prerun else found
    if trial is None:
        _list(found, as_json)
    else:
        _one(found, trial, out, as_json)


def _list(study: Study, as_json: bool) -> None:
    """Print one line a trial: its outcome and the first finding in its steps."""
    import pandas as pd

    from ahf_cli.report.diagnosis import diagnose
    from ahf_cli.report.study_data import judged
    from ahf_cli.study.frames import rows_frame

    results, problems = study.read_results()
    read = study.reader.steps(results)
    steps = rows_frame(results, read)
    own = dict(iter(steps.groupby(["recipe", "trial"])))
    rows = []
    outcomes = [str(what) for what in judged(study, results, study.manifest(), steps)["outcome"]]
    for result, outcome in zip(results, outcomes, strict=True):
        found = diagnose(result, own.get((result.recipe, result.slot), steps[:0]), outcome)
        first = "" if outcome == "trained" else found.findings[0].split(":")[0]
        rows.append({"trial": f"{result.recipe}/{result.slot:03d}", "outcome": found.outcome, "first": first})
    if as_json:
        emit_json({"study": study.name, "trials": rows})
    elif rows:
        print_tables({f"{study.name}: {len(rows)} trials": pd.DataFrame(rows)[["trial", "outcome"]]})
        say(f"to explain one of them: ahf show {study.name} {rows[0]['trial']}")
    for line in (*problems, *read.problems):
        log(f"damaged: trial {line}")
    if not rows:
        raise IncompleteError(f"no trial of {study.name} is finished yet")


def _one(study: Study, trial: str, out: Path | None, as_json: bool) -> None:
    from ahf_cli.report.canvas import Drawing, save
    from ahf_cli.report.diagnosis import diagnose, trial_drawing
    from ahf_cli.report.exhibits.solution import solution
    from ahf_cli.report.study_data import judged
    from ahf_cli.study.frames import rows_frame

    recipe, slot = _parsed(study, trial)
    result = study.reader.inspect(recipe, slot)
    if result is None:
        raise IncompleteError(f"trial {recipe}/{slot:03d} of {study.name} is not finished")
    read = study.reader.steps([result])
    if read.problems:
        raise InputError([f"trial {line}" for line in read.problems])
    steps = rows_frame([result], read)
    steps = steps[steps["trial"] == slot].reset_index(drop=True)
    outcome = str(judged(study, [result], study.manifest(), steps)["outcome"].iloc[0])
    found = diagnose(result, steps, outcome, _max_iterations(study, recipe))
    drawing = trial_drawing(result, steps, outcome)
    solved = solution([(study, recipe, slot)])
    target = out or study.report_folder
    with writing_to(target, study.folder):
        drawings = [d for d in (drawing, solved) if isinstance(d, Drawing)]
        files = [file for d in drawings for file in save(d, target)]
    if as_json:
        document: dict[str, Any] = {"study": study.name, **result.plain(), **asdict(found)}
        emit_json({**document, "files": [str(file) for file in files]})
        return
    say(textwrap.fill(f"{recipe}/{slot:03d} {found.outcome}", 100, subsequent_indent="  "))
    for line in found.findings:
        say(textwrap.fill(f"- {line}", 100, subsequent_indent="  "))
    if isinstance(solved, str):
        say(solved)
    for file in files:
        say(str(file))


def _parsed(study: Study, trial: str) -> tuple[str, int]:
    """Return recipe and slot of `recipe/slot`.

    Raises InputError with the nearest recipe or the slots of the study.
    """
    recipe, slash, slot = trial.rpartition("/")
    known = study.recipes()
    if not slash or not slot.isdecimal() or not slot.isascii() or len(slot) > 9:
        raise InputError(
            f"trial must be RECIPE/SLOT, such as {known[0] if known else 'hf'}/000, got {trial!r}"
        )
    if recipe not in known:
        raise InputError(f"{study.name} has no recipe {recipe!r}{nearest(recipe, known) if known else ''}")
    slots = study.reader.slots(recipe)
    if int(slot) not in slots:
        raise InputError(
            f"{recipe} has no slot {int(slot):03d}; it has {slots[0]:03d} to {slots[-1]:03d}"
            if slots
            else f"{recipe} has no trials"
        )
    return recipe, int(slot)


def _max_iterations(study: Study, recipe: str) -> int | None:
    described = study.manifest().get("identity", {}).get("recipes", {}).get(recipe, {})
    found = described.get("structure", {}).get("max_iterations")
    return int(found) if found else None
