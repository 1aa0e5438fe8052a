"""`ahf compare`: tables, figures, report and verdict of the finished trials of a study."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ahf_cli.cli import completion
from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    ConfigFile,
    Device,
    Json,
    Override,
    Preset,
    Quiet,
    Results,
    check_target,
    emit_json,
    log,
    print_tables,
    resolve,
    say,
    writing_to,
)
from ahf_cli.errors import AhfError, IncompleteError, InputError

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.report.comparison import Comparison
    from ahf_cli.report.study_data import StudyData
    from ahf_cli.study.store import Study

app = typer.Typer(help="Compare the finished trials of a study: verdict, tables, figures and report.")

Band = Literal["se", "sd", "ci", "iqr"]
Theme = Literal["screen", "paper", "paper-wide"]
Part = Literal["tables", "figures", "report"]
EVERYTHING: tuple[Part, ...] = ("tables", "figures", "report")
WIDTH = 100

Studies = Annotated[
    list[str] | None,
    typer.Option(
        "--study",
        metavar="[LABEL=]STUDY",
        help="Study by name or path, under a label of your choice; repeatable. Default: the preset's study.",
        autocompletion=completion.studies,
    ),
]
BandOption = Annotated[
    Band | None,
    typer.Option(
        "--band",
        help="Standard error, standard deviation, 95 % interval or quartiles; default: compare.band.",
    ),
]
Target = Annotated[
    float | None,
    typer.Option(
        "--target", metavar="X", help="Value of the headline metric to meet; default: compare.target."
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="png|pdf|svg|pgf",
        help="Format of the figures; repeatable. Default: png, or pdf for an article.",
    ),
]
ThemeOption = Annotated[
    Theme, typer.Option("--theme", help="Sizes for the screen, or for one or both columns of an article.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Give a verdict although conditions differ, and stamp the figures.")
]
Attribute = Annotated[
    bool,
    typer.Option(
        "--attribute", help="Show the effect of each single choice, between recipes that differ in one."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder of the output; default: STUDY/report, reports/STUDY if packed."
    ),
]


@dataclass(frozen=True)
class Request:
    """Options of a comparison, given before or after the name of the sub-command."""

    studies: tuple[str, ...] = ()
    results: Path = DEFAULT_RESULTS
    band: Band | None = None
    target: float | None = None
    formats: tuple[str, ...] = ()
    theme: Theme = "screen"
    force: bool = False
    attribute: bool = False
    out: Path | None = None
    preset: str | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    as_json: bool = False
    quiet: bool = False

    def after(self, before: Request | None) -> Request:
        """Return the options of both places; options after the name win, and overrides add up."""
        if before is None:
            return self
        default = Request()
        names = [f.name for f in fields(self)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}
        return replace(before, **{**given, "overrides": (*before.overrides, *self.overrides)})


def _command(run: Callable[[typer.Context, Request], None], words: str) -> Callable[..., None]:
    """Return a command with the options of this group."""

    def command(
        context: typer.Context,
        study: Studies = None,
        results: Results = DEFAULT_RESULTS,
        band: BandOption = None,
        target: Target = None,
        formats: Formats = None,
        theme: ThemeOption = "screen",
        force: Force = False,
        attribute: Attribute = False,
        out: Out = None,
        preset: Preset = None,
        config: ConfigFile = None,
        override: Override = None,
        device: Device = None,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        del device  # every command takes it; a comparison computes nothing on a device
        request = Request(
            tuple(study or ()), results, band, target, tuple(formats or ()), theme, force, attribute, out,
            preset, config, tuple(override or ()), as_json, quiet,
        )  # fmt: skip
        run(context, request)

    command.__doc__ = words
    return command


def _all(context: typer.Context, request: Request) -> None:
    context.obj = request
    if context.invoked_subcommand is None:
        _run(request, EVERYTHING)


app.callback(invoke_without_command=True)(
    _command(
        _all,
        "Compare the finished trials of a study: print a table and a verdict, write tables, figures and a "
        "report.\n\nAn unfinished study is shown with its finished trials, and the exit code is 3.",
    )
)
app.command("plots")(
    _command(
        lambda context, request: _run(request.after(context.obj), ("figures",)),
        "Write the figures only, each with the table that it is drawn from.",
    )
)
app.command("tables")(
    _command(
        lambda context, request: _run(request.after(context.obj), ()),
        "Print all tables and the verdict; nothing is written.",
    )
)
app.command("report")(
    _command(
        lambda context, request: _run(request.after(context.obj), ("report",)),
        "Write report.html only: one file with everything, for a browser.",
    )
)


def _run(request: Request, parts: tuple[Part, ...]) -> None:
    """Make and print a comparison.

    Raises IncompleteError where planned trials are missing.
    """
    made = make(request, parts)
    if request.as_json:
        emit_json(made.document)
    else:
        made.show()
    if made.missing:
        raise IncompleteError(f"not finished: {'; '.join(made.missing)}; only finished trials are shown")


@dataclass(frozen=True)
class Made:
    """A comparison and its written files."""

    comparison: Comparison
    parts: tuple[Part, ...]
    files: list[Path]
    out: Path

    @property
    def document(self) -> dict[str, Any]:
        """The numbers with their intervals and the paths of the files, as plain data."""
        return {**self.comparison.document, "files": [str(file) for file in self.files]}

    @property
    def missing(self) -> list[str]:
        """One line for each unfinished recipe."""
        return self.comparison.data.missing

    def show(self) -> None:
        """Print the overview or all tables, the verdict, and the written files."""
        found = self.comparison
        if self.parts == ("figures",):
            for file in self.files:
                say(str(file))
            return
        if self.parts:
            print_tables({", ".join(found.data.names): found.overview()})
            if found.choices.attribute:
                print_tables(dict(found.tables["attribution"].texts))
        else:
            for table in found.tables.values():
                print_tables(dict(table.texts))
                say(f"{table.note}\n" if table.note else "")
        for line in found.verdict.lines():
            say(textwrap.fill(line, WIDTH, subsequent_indent="  "))
        for problem in found.data.problems:
            say(f"damaged: {problem}")
        if self.files:
            say(f"\nwritten to {self.out}: {_kinds(self.files)}")
        for name, why in found.drawn[1].items() if "figures" in self.parts else ():
            say(f"not drawn: {name}, since {why}")


def _kinds(files: list[Path]) -> str:
    """Return the numbers of figures and tables among files, and the names of other files."""
    figures = len({file.stem for file in files if file.parent.name == "data"})
    tables = len({file.stem for file in files if file.parent.name == "tables"})
    counted = [f"{n} {what}" for n, what in ((figures, "figures"), (tables, "tables")) if n]
    return ", ".join(
        [*counted, *(f.name for f in files if f.parent.name not in ("data", "figures", "tables"))]
    )


def compare_study(name: str, results: Path, band: Band, quiet: bool) -> Made:
    """Write all tables, figures and the report of one study, and return them."""
    return make(Request((name,), results, band, quiet=quiet), EVERYTHING)


def make(request: Request, parts: tuple[Part, ...]) -> Made:
    """Write the requested parts of a comparison, and return it.

    Raises IncompleteError where no trial is finished, InputError where the folder cannot be written.
    """
    from ahf_cli.report.canvas import THEMES, check_formats

    formats = check_formats(request.formats or THEMES[request.theme].formats)
    found = comparison(request)
    data = found.data
    if not len(data.trials) or (data.trials["status"] == "failed").all():
        planned = "; ".join(data.missing) or "none planned"
        raise IncompleteError(f"no trial of {', '.join(data.names)} is finished yet: {planned}")
    if {"figures", "report"} & set(parts):
        _ = data.steps  # reads the steps, so that a damaged file ends the command before it writes
    out = request.out or data.study.report_folder
    if request.out is None and len(data.names) > 1:
        out = out / f"with-{'-'.join(data.names[1:])}"
    files: list[Path] = []
    with writing_to(out, data.study.folder):
        if "tables" in parts:
            files += found.save_tables(out)
        if "figures" in parts:
            log(f"drawing {len(data.trials)} trials of {', '.join(data.names)}", request.quiet)
            files += found.save_figures(out, request.theme, formats)
        if "report" in parts:
            from ahf_cli.report.page import save_page

            files.append(save_page(found, out))
    return Made(found, parts, files, out)


def comparison(request: Request) -> Comparison:
    """Return the comparison of the requested studies, with the choices of their configuration."""
    from ahf_cli.report.comparison import Comparison
    from ahf_cli.report.exhibits.exhibit import Choices
    from ahf_cli.report.study_data import pool, read_study
    from ahf_cli.study.find import find_study

    config = resolve(request.preset, request.config, None, request.overrides)
    names = _labels(request.studies) or {config.study: config.study}
    studies = {label: read_study(find_study(request.results, name)) for label, name in names.items()}
    own = next(iter(studies.values())).study
    if request.preset is None and request.config is None and os.path.lexists(own.folder / "config.yaml"):
        config = _settings_of(own, request.overrides) or config
    data = pool(studies)
    target, its = _target(request, config, data), config.compare
    choices = Choices(request.band or its.band, target, its.references, its.published, request.attribute)
    return Comparison(data, choices, request.force)


def _target(request: Request, config: Config, data: StudyData) -> float | None:
    """Return the target of the headline: the option's, else the configuration's, else 0.80 of an accuracy."""
    metric = data.metrics.headline
    for name, found in (("--target", request.target), ("compare.target", config.compare.target)):
        check_target(name, found, metric)
    given = config.compare.target if request.target is None else request.target
    return 0.80 if given is None and metric.column == "test_accuracy" else given


def _settings_of(study: Study, overrides: tuple[str, ...]) -> Config | None:
    """Return a study's own configuration, or None with a remark where this version cannot read it."""
    try:
        return study.config(overrides)
    except AhfError as error:
        if overrides:
            raise
        file = study.folder / "config.yaml"
        log(f"{file} cannot be read ({error.lines[0]}); band and target have their defaults")
        return None


def _labels(studies: tuple[str, ...]) -> dict[str, str]:
    """Return names or paths by label, from `NAME` or `LABEL=NAME`; by default the last part labels a path."""
    from ahf_cli.study.manifest import check_name

    found: dict[str, str] = {}
    for text in studies:
        label, equals, name = text.partition("=")
        if not equals or "/" in label:
            label, name = Path(os.path.abspath(text)).name if "/" in text else text, text
        if found.get(check_name(label, "label and study" if "/" in text else "study"), name) != name:
            raise InputError(f"--study: labels must differ, got {label!r} twice; LABEL=NAME gives another")
        found[label] = name
    return found
