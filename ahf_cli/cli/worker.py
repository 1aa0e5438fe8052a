"""`ahf worker`: a further process of a search, also on another machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahf_cli.cli import completion, session
from ahf_cli.cli.options import DEFAULT_RESULTS, Device, Quiet, Results, Storage, log
from ahf_cli.errors import InputError
from ahf_cli.interruption import Interruption

if TYPE_CHECKING:
    from ahf_cli.study.trial_folder import TrialFolders

Name = Annotated[
    str,
    typer.Option(
        "--study",
        metavar="NAME",
        help="Study to join.",
        show_default=False,
        autocompletion=completion.own_studies,
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Number of processes; default: one a core.")
]


def worker(
    study: Name,
    storage: Storage = None,
    results: Results = DEFAULT_RESULTS,
    workers: Workers = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Join a search that `ahf search` has begun in a PostgreSQL storage, until all trials are finished.

    If the search uses the same results folder, trials are written there.  Else they are sent through the
    storage; the next `ahf search` or `ahf repair` on the search's machine fetches them.
    """
    from ahf_cli.cli.progress import Terminal
    from ahf_cli.config.load import parse, with_seeds
    from ahf_cli.config.strict_yaml import parse_yaml
    from ahf_cli.search.run import join
    from ahf_cli.search.storage import open_storage
    from ahf_cli.search.survey import about
    from ahf_cli.study.manifest import check_name

    check_name(study)
    url = session.storage_url(storage, None)
    if url is None:
        raise InputError("ahf worker needs a storage: AHF_STORAGE=postgresql+psycopg://…, or --storage")
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be ≥ 1, got {workers}")
    opened = open_storage(url)
    if not opened.shared:
        raise InputError("ahf worker needs a PostgreSQL storage: a SQLite file belongs to one process")
    said = about(opened, study)
    source = f"study {study} in {opened.where}"
    data: dict[str, Any] = with_seeds(parse_yaml(str(said["config"]), source))
    run = {key: value for key, value in (("device", device), ("workers", workers)) if value is not None}
    data["run"] = {**data.get("run", {}), **run}
    data["search"] = {**data.get("search", {}), "trials": said["trials"]}
    config = parse(data, source)
    records, reruns, where = _records(results, study, str(said["created"]))
    log(f"joining {source}; {where}", quiet)
    stop = Interruption()
    with stop.watched(quiet):
        done = join(
            config, str(said["created"]), opened, records, reruns, where, Terminal(quiet), should_stop=stop
        )
    if not done:
        raise session.interrupted()


def _records(results: Path, study: str, created: str) -> tuple[TrialFolders, TrialFolders, str]:
    """Return the folders of trials and re-runs, and their place in words.

    They are the study's own folders, or copies of trials that are sent through the storage.
    """
    from ahf_cli.study.store import Study
    from ahf_cli.study.trial_folder import TrialFolders

    folder = Study(results, study)
    if folder.exists() and folder.manifest().get("created") == created:
        return folder.trials, folder.reruns.trials, f"trials in {folder.folder}"
    key = hashlib.sha256(created.encode()).hexdigest()[:8]
    own = results / f".worker-{study}-{key}"
    said = f"trials are sent through the storage (copies in {own})"
    return TrialFolders(own / "trials"), TrialFolders(own / "reruns"), said
