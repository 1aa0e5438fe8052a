"""`ahf ls`, `rm`, `export`, `pack`, `unpack` and `repair`: commands on a whole study."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from ahf_cli.cli import completion, session
from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    Json,
    Quiet,
    Results,
    Storage,
    emit_json,
    log,
    say,
    writing_to,
)
from ahf_cli.errors import InputError

if TYPE_CHECKING:
    from ahf_cli.study.store import Study

_STUDY = "Name or path of the study."
Name = Annotated[
    str,
    typer.Argument(metavar="STUDY", help=_STUDY, show_default=False, autocompletion=completion.studies),
]
OwnName = Annotated[
    str,
    typer.Argument(metavar="STUDY", help=_STUDY, show_default=False, autocompletion=completion.own_studies),
]
Kind = Literal["recipes", "parts", "models", "tasks", "losses"]
What = Annotated[
    str,
    typer.Argument(
        metavar="WHAT",
        help="studies, recipes, parts, models, tasks or losses; or a study's name or path.",
        autocompletion=completion.kinds_and_studies,
    ),
]
To = Annotated[Path, typer.Option("--to", metavar="DIR", help="Parent of the written folder DIR/STUDY.")]
Partial = Annotated[
    bool, typer.Option("--partial", help="Pack a study that is not finished, with its checkpoints.")
]
WithoutSteps = Annotated[
    list[str] | None,
    typer.Option(
        "--without-steps",
        metavar="RECIPE",
        help="Leave out the steps of a recipe; repeatable.",
        autocompletion=completion.planned_recipes,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Delete without a question.")]
Format = Annotated[Literal["csv", "parquet"], typer.Option("--format", help="Format of the tables.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder of the tables; default: export in the study's."),
]


def ls(what: What = "studies", results: Results = DEFAULT_RESULTS, as_json: Json = False) -> None:
    """List the studies of a results folder, or the names for a configuration, plug-ins included."""
    from ahf_cli.study.find import check_results, find_study, study_names

    if what in get_args(Kind):
        registered = _registered(what)
        width = max(map(len, registered))
        if as_json:
            emit_json(registered)
        for name, said in registered.items() if not as_json else ():
            say(f"{name:{width}}  {said}")
        return
    if what == "studies":
        check_results(results)
    found = [_entry(find_study(results, n)) for n in (study_names(results) if what == "studies" else [what])]
    if as_json:
        emit_json(found)
        return
    if not found:
        say(f"no studies in {results}")
    width = max((len(e["study"]) for e in found), default=0)
    for e in found:
        packed = "  packed" if e["packed"] else ""
        holder = f"  in use by process {e['in_use_by']}" if e["in_use_by"] else ""
        say(
            f"{e['study']:{width}}  {e['trials']} of {e['planned']} trials of {', '.join(e['recipes'])}"
            f"  {e['megabytes']:.1f} MB  {e['changed'][:16].replace('T', ' ')}{packed}{e['problem']}{holder}"
        )


def _registered(what: str) -> dict[str, str]:
    """Return the registered names of a kind, each with its description."""
    from ahf_cli.recipes.builtin import RECIPES
    from ahf_cli.recipes.document import parts_document, rule
    from ahf_cli.tasks.catalogue import LOSSES, MODELS, describe
    from ahf_cli.tasks.datasets import DATA_SETS, DataSet

    def shape(sides: tuple[int, ...]) -> str:
        return " × ".join(map(str, sides))

    def targets(data: DataSet) -> str:
        kind = f"targets of {shape(data.target)}" if data.classes is None else f"{data.classes} classes"
        if data.classes is not None and data.target:
            kind += f" at {shape(data.target)} positions"
        return f"{kind}; metrics: {', '.join(('loss', *data.metrics))}"

    own = {
        "recipes": {name: rule(recipe) for name, recipe in RECIPES.items()},
        "parts": {
            f"{p['slot']} {p['name']}": "; ".join(text for text in (p["formula"], p["sentence"]) if text)
            for p in parts_document()
        },
        "models": {name: describe(model.make) for name, model in MODELS.items()},
        "tasks": {
            name: f"{d.title}: {d.training:,} training examples of {shape(d.shape)}, {targets(d)}"
            for name, d in DATA_SETS.items()
        },
        "losses": {name: describe(loss.make) for name, loss in LOSSES.items()},
    }
    return own[what]


def _entry(study: Study) -> dict[str, Any]:
    from ahf_cli.study.opening import walk

    files = [e.stat(follow_symlinks=False) for e in walk(study.folder) if e.is_file(follow_symlinks=False)]
    changed = max((stat.st_mtime for stat in files), default=study.folder.stat().st_mtime)
    plan: dict[str, int] = {}
    recipes: list[str] = []
    trials, problem, packed = 0, "", False
    try:
        packed = study.pack is not None
        plan = study.planned()
    except InputError as error:
        problem = f"  {error.lines[0]}"
    try:
        recipes = study.recipes_on_disk()
        trials = sum(study.begun(recipe) for recipe in recipes)
    except InputError as error:
        problem = problem or f"  {error.lines[0]}"
    return {
        "study": study.name,
        "recipes": list(plan) or recipes,
        "trials": trials,
        "planned": sum(plan.values()),
        "packed": packed,
        "where": str(study.folder),
        "megabytes": sum(stat.st_size for stat in files) / 1e6,
        "changed": datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        "in_use_by": study.holder(),
        "problem": problem,
    }


def rm(study: OwnName, results: Results = DEFAULT_RESULTS, storage: Storage = None, yes: Yes = False) -> None:
    """Delete a study: its folder, and its trials in the storage if one is given."""
    from ahf_cli.study.find import find_study

    url = session.storage_url(storage, None)
    folder = find_study(results, study)
    if "/" not in study and folder.results != results:
        raise InputError(f"{folder.folder} is a reference study; ahf rm takes its path, not its name")
    target = folder.folder.resolve() if folder.folder.is_symlink() else None
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(
                f"ahf rm asks before it deletes study {study!r}: give --yes to delete without a question"
            )
        entry = None if target else _entry(folder)
        what = (
            f"with {entry['trials']} trials ({entry['megabytes']:.1f} MB)" if entry else f"a link to {target}"
        )
        typer.confirm(f"delete study {study!r}, {what}?", abort=True)
    if url and target is None:
        _remove_from_storage(url, study)
    folder.remove()
    kept = f", a link; {target} stays as it is" if target else ""
    say(f"deleted {folder.folder}{kept}")


def _remove_from_storage(url: str, study: str) -> None:
    from ahf_cli.search.storage import answering, open_storage
    from ahf_cli.search.survey import remove

    storage = open_storage(url)
    with closing(storage), answering(storage):
        remove(storage, study)


def export(
    study: Name,
    format_: Format = "csv",
    out: Out = None,
    results: Results = DEFAULT_RESULTS,
    as_json: Json = False,
) -> None:
    """Write a study's trials, curves and steps as tables."""
    from ahf_cli.study.files import write_table
    from ahf_cli.study.find import find_study
    from ahf_cli.study.frames import curves_frame, steps_frame, trials_frame

    found = find_study(results, study)
    folder = out or (found.folder if found.pack is None else found.report_folder) / "export"
    tables = {"trials": trials_frame(found), "curves": curves_frame(found)}
    tables |= {f"steps-{name}": steps_frame(found, name) for name in found.recipes()}
    files = [folder / f"{name}.{format_}" for name in tables]
    with writing_to(folder, found.folder):
        for file, table in zip(files, tables.values(), strict=True):
            write_table(file, table)
    for line in found.read_results()[1]:
        log(f"damaged: trial {line}")
    if as_json:
        emit_json({"study": study, "files": [str(file) for file in files]})
        return
    for file in files:
        say(str(file))


def pack(
    study: Name,
    to: To,
    partial: Partial = False,
    without_steps: WithoutSteps = None,
    results: Results = DEFAULT_RESULTS,
    as_json: Json = False,
) -> None:
    """Write a finished study, without loss, as a few read-only files to keep or to send.

    `ahf compare`, `show`, `export`, `status` and `ls` read these files; `ahf unpack` restores the folders.
    """
    from ahf_cli.study.find import find_study
    from ahf_cli.study.pack import pack as packed

    _say_copied(packed(find_study(results, study), to, partial, without_steps or ()), "packed", as_json)


def unpack(study: Name, to: To, results: Results = DEFAULT_RESULTS, as_json: Json = False) -> None:
    """Write a packed study as folders again, which `ahf search` can resume."""
    from ahf_cli.study.find import find_study
    from ahf_cli.study.pack import unpack as unpacked

    _say_copied(unpacked(find_study(results, study), to), "unpacked", as_json)


def _say_copied(folder: Path, how: str, as_json: bool) -> None:
    """Print the folder of a written study, and the number and size of its files."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    if as_json:
        emit_json({"study": folder.name, "folder": str(folder), "files": len(sizes), "bytes": sum(sizes)})
    else:
        say(f"{how} into {folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB")


def repair(
    study: Name,
    results: Results = DEFAULT_RESULTS,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every file of a study, and make manifest, database and tables again from its trials.

    A damaged file is renamed; its trial counts as unfinished, and `ahf search` runs it again.  The trial
    folders hold the results; the database is an index of them.
    """
    from ahf_cli.study.find import find_study
    from ahf_cli.study.repair import repair_folder

    url = session.storage_url(storage, None)
    found = find_study(results, study)
    found.refuse_packed()
    documents = []
    for part, stream in ((found.prerun, 1), (found, 0)):
        if part.exists() and any((part.folder / name).exists() for name in ("manifest.json", "trials")):
            document = repair_folder(part)
            with part:
                document["indexed"] = _index(part, url, stream, quiet)
            documents.append({"study": study, "stage": "prerun" if stream else "search", **document})
    if as_json:
        emit_json(documents)
        return
    for d in documents:
        again = f" and {d['reruns']} re-runs" if d["reruns"] else ""
        say(
            f"{d['study']} ({d['stage']}): {d['finished']} finished trials{again}, "
            f"{len(d['set_aside'])} files set aside, manifest {d['manifest']}, {d['indexed']} trials indexed"
        )
        for line in d["set_aside"]:
            say(f"  {line}")


def _index(part: Study, url: str | None, stream: int, quiet: bool) -> int:
    """Make the database of a study from its trials and re-runs, and return their number."""
    from ahf_cli.search.plan import rerun_plan
    from ahf_cli.search.run import again_of, search_plan
    from ahf_cli.search.search import Search
    from ahf_cli.search.storage import answering, open_storage, sqlite_url

    if part.text("config.yaml") is None or (part.results / part.name).name.startswith("train-"):
        return 0
    config = part.config()
    trials = max([config.search.trials, *part.planned().values()])
    config = part.config([f"search.trials={trials}"], with_classes=True)
    created = part.manifest()["created"] if url else ""
    if url is None:
        for name in ("study.db", "study.db-journal", "study.db-wal", "study.db-shm"):
            (part.folder / name).unlink(missing_ok=True)
    store = open_storage(url or sqlite_url(part.folder / "study.db"))
    with closing(store), answering(store):
        log(f"making the index again in {store.where}", quiet)
        plan = search_plan(config, stream=stream, created=created)
        search = Search(plan, part.trials, store)
        indexed = search.rebuild()
        again, best = again_of(config, part.reruns.trials, plan.prefix), search.best()
        if again is not None and best:
            repeated = rerun_plan(plan, best, again.count, again.prefix)
            indexed += Search(repeated, again.records, store).rebuild()
        return indexed
