"""`ahf status`: the progress of studies."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahf_cli.cli import completion, session
from ahf_cli.cli.options import DEFAULT_RESULTS, Json, Results, Storage, emit_json, log, say
from ahf_cli.errors import InputError
from ahf_cli.tasks.metrics import digits
from ahf_cli.training.records import headline

if TYPE_CHECKING:
    from ahf_cli.study.store import Study
    from ahf_cli.training.records import RecipeStatus, Running

Name = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="STUDY",
        help="A study's name or path; default: all in the results folder.",
        autocompletion=completion.studies,
    ),
]
Watch = Annotated[
    bool, typer.Option("--watch", help="Repeat every two seconds, until all trials are finished.")
]
_EVERY = 2.0


def status(
    study: Name = None,
    results: Results = DEFAULT_RESULTS,
    storage: Storage = None,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Show the progress of a search: trials waiting, running, ok, diverged, failed, and the time left.

    With a storage, it counts the trials of all machines that share it; else the trials in the results folder.
    """
    url = session.storage_url(storage, None)
    while True:
        documents = list(_in_storage(url, study) if url else _in_folder(results, study))
        if as_json:
            emit_json(documents)
        else:
            if watch and sys.stdout.isatty():
                say("\x1b[2J\x1b[H" + time.strftime("%H:%M:%S"))
            for line in (line for document in documents for line in lines(document)):
                say(line)
            if not documents:
                say(f"no studies in {results}")
        if not watch or all(document["complete"] for document in documents):
            return
        sys.stdout.flush()
        time.sleep(_EVERY)


def _in_folder(results: Path, name: str | None) -> Iterator[dict[str, Any]]:
    from ahf_cli.study.find import check_results, find_study, study_names

    if name is None:
        check_results(results)
    for found in [name] if name else study_names(results):
        try:
            yield from _parts(find_study(results, found))
        except InputError as error:
            if name:
                raise
            log("; ".join(error.lines))  # a damaged study does not hide the others


def _parts(study: Study) -> list[dict[str, Any]]:
    """Return the status of a study's pre-run, search and re-runs."""
    from ahf_cli.study.status import survey

    documents = []
    for part, stage in ((study.prerun, "prerun"), (study, "search"), (study.reruns, "reruns")):
        if part.exists() and part.planned():
            found, damaged = survey(part)
            documents.append(document(study.name, stage, str(part.folder), part.holder(), found, damaged))
    return documents


def _in_storage(url: str, name: str | None) -> Iterator[dict[str, Any]]:
    from ahf_cli.search.storage import answering, open_storage
    from ahf_cli.search.survey import searches, survey

    storage = open_storage(url)
    with closing(storage), answering(storage):
        for study in [name] if name else searches(storage):
            yield document(study, "search", storage.where, None, survey(storage, study))
            if study in searches(storage, "rerun"):
                yield document(study, "reruns", storage.where, None, survey(storage, study, "rerun"))


def document(
    study: str,
    stage: str,
    where: str,
    holder: str | None,
    found: list[RecipeStatus],
    damaged: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return a study's status as plain data."""
    recipes = {
        r.recipe: {
            **asdict(r), "waiting": r.waiting, "running": [_running(t) for t in r.running],
            "seconds_left": r.seconds_left,
        }
        for r in found
    }  # fmt: skip
    left = [r.seconds_left for r in found]
    return {
        "study": study,
        "stage": stage,
        "where": where,
        "in_use_by": holder,
        "damaged": list(damaged),
        "complete": not any(r.waiting or r.running for r in found),
        "seconds_left": None if None in left else sum(filter(None, left)),
        "recipes": recipes,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return a study's status as lines of text."""
    holder = f", in use by process {found['in_use_by']}" if found["in_use_by"] else ""
    said = [f"{found['study']} ({found['stage']}) in {found['where']}{holder}"]
    width = max(map(len, found["recipes"]), default=0)
    for name, r in found["recipes"].items():
        counts = (
            f"{r['ok']} ok, {r['diverged']} diverged, {r['failed']} failed, {len(r['running'])} running, "
        )
        best = "" if r["best_value"] is None else f"; best value {digits(r['best_value'])}"
        said.append(f"  {name:{width}}  {counts}{r['waiting']} waiting, of {r['planned']}{best}")
        said += [
            f"  {'':{width}}    trial {t['slot']}: for {_time(t['seconds'])} on {t['host']}{_row(t['row'])}"
            for t in r["running"]
        ]
    said += [f"  damaged: trial {line}" for line in found["damaged"]]
    if found["complete"]:
        said.append("  all trials are finished")
    elif found["seconds_left"] is not None:
        said.append(f"  about {_time(found['seconds_left'])} left")
    return said


def _running(trial: Running) -> dict[str, Any]:
    return {**vars(trial), "row": trial.row and trial.row.plain()}


def _row(row: dict[str, Any] | None) -> str:
    """Return the last evaluation of a running trial as text."""
    if row is None:
        return ""
    return f"; step {row['step']}: training loss {digits(row['train_loss'])}, {headline(row)}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
