"""`ahf data`: fetch, verify and find the files of the data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ahf_cli.cli import completion
from ahf_cli.errors import InputError
from ahf_cli.tasks import sources
from ahf_cli.tasks.datasets import DATA_SETS, DataSet, find
from ahf_cli.tasks.folder import ENVIRONMENT, SHOWN, digests, locate

app = typer.Typer(
    help="Fetch, verify and find the files of the data sets.",
    pretty_exceptions_show_locals=False,
    no_args_is_help=True,
)


def _folder(text: str) -> Path:
    """Return the folder.

    Raises InputError for '', which an empty variable gives and which would be the current folder.
    """
    if not text:
        raise InputError("--data-dir must name a folder, got ''")
    return Path(text)


WITH_FILES = [name for name, data in DATA_SETS.items() if data.files]
Name = Annotated[
    str,
    typer.Argument(
        metavar="[NAME]",
        help=f"Data set: {', '.join(WITH_FILES)}.",
        show_default=True,
        autocompletion=completion.data_files,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        parser=_folder,
        metavar="DIR",
        envvar=ENVIRONMENT,
        help="Folder of the files, or of a sub-folder with the name of the data set, such as cifar10. "
        "MNIST is always in a sub-folder, since its files are named like Fashion-MNIST's.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print folder and digests as one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines on stderr.")]
FASHION_MNIST = "fashion_mnist"


def _log(quiet: bool) -> sources.Report:
    return lambda line: None if quiet else typer.echo(line, err=True)


def _find(name: str) -> DataSet:
    """Return a data set that has files.

    Raises InputError for one that a program makes.
    """
    data = find(name)
    if not data.files:
        raise InputError(f"data set {name!r} is made by a program and has no files")
    return data


def _print(folder: Path, as_json: bool, data: DataSet) -> None:
    if as_json:
        what = "SHA-256 of the unpacked content" if data.unpacked else "SHA-256"
        files = digests(folder, data)
        typer.echo(json.dumps({"folder": str(folder), "digest": what, "files": files}, indent=2))
    else:
        typer.echo(str(folder))


@app.command()
def fetch(
    name: Name = FASHION_MNIST, data_dir: DataDir = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Fetch missing files of a data set, and print their folder.

    The command looks in the user's cache and, for Fashion-MNIST and the Bible, in the folder of Debian's
    package.  Otherwise torchvision downloads the files into the cache, or apt-get gets that package.  A
    folder named by --data-dir or AHF_DATA_DIR is made if need be, and gets copies of the files that it lacks.
    """
    log, data = _log(quiet), _find(name)
    folder = sources.fetch(data_dir, log, data=data)
    log(f"{data.title} is complete and verified in {folder}")
    _print(folder, as_json, data)


@app.command()
def verify(
    name: Name = FASHION_MNIST, data_dir: DataDir = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Check all files against their known SHA-256; print their folder."""
    data = _find(name)
    folder = locate(data_dir, data)
    log = _log(quiet)
    for file, digest in digests(folder, data).items():
        log(f"ok  {file}  {digest[:SHOWN]}…")
    _print(folder, as_json, data)


@app.command()
def path(
    name: Name = FASHION_MNIST, data_dir: DataDir = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Verify the files of a data set, and print their folder."""
    data = _find(name)
    _print(locate(data_dir, data), as_json, data)
