"""`ahf data`: fetch, verify and find the Fashion-MNIST files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ahf_cli.errors import InputError
from ahf_cli.tasks import sources

app = typer.Typer(
    help="Fetch, verify and find the Fashion-MNIST files.",
    pretty_exceptions_show_locals=False,
    no_args_is_help=True,
)


def _folder(text: str) -> Path:
    """Return the folder; '' would be the current one, and is more likely an empty variable."""
    if not text:
        raise InputError("--data-dir must name a folder, got ''")
    return Path(text)


DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        parser=_folder,
        metavar="DIR",
        envvar=sources.ENVIRONMENT,
        help="Folder that holds the four .gz files.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print folder and digests as one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines on stderr.")]


def _log(quiet: bool) -> sources.Report:
    return lambda line: None if quiet else typer.echo(line, err=True)


def _print(folder: Path, as_json: bool) -> None:
    if as_json:
        digests = sources.digests(folder)
        document = {"folder": str(folder), "digest": "SHA-256 of the unpacked content", "files": digests}
        typer.echo(json.dumps(document, indent=2))
    else:
        typer.echo(str(folder))


@app.command()
def fetch(data_dir: DataDir = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Get the data unless they are here already; print their folder.

    Looked for in the user's cache and /usr/share/datasets/fashion-mnist; otherwise torchvision downloads them
    into the cache, or apt-get gets Debian's package of them.  A folder named by --data-dir or AHF_DATA_DIR is
    made if need be, and gets copies of the files that it lacks.
    """
    log = _log(quiet)
    folder = sources.fetch(data_dir, log)
    log(f"Fashion-MNIST is complete and verified in {folder}")
    _print(folder, as_json)


@app.command()
def verify(data_dir: DataDir = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Check all four files against their known SHA-256; print their folder."""
    folder = sources.locate(data_dir)
    log = _log(quiet)
    for name, digest in sources.digests(folder).items():
        log(f"ok  {name}  {digest[: sources.SHOWN]}…")
    _print(folder, as_json)


@app.command()
def path(data_dir: DataDir = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Print the folder of the data, verified."""
    _print(sources.locate(data_dir), as_json)
