"""`ahf compare`: tables and figures of finished trials, drawn as far as a study has come."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    ConfigFile,
    Json,
    Override,
    Preset,
    Quiet,
    Results,
    emit_json,
    log,
    resolve,
    say,
)
from ahf_cli.errors import IncompleteError

if TYPE_CHECKING:
    import pandas as pd

    from ahf_cli.report.store import Study

app = typer.Typer(help="Compare the finished trials of a study: tables and figures.")

Studies = Annotated[
    list[str] | None,
    typer.Option(
        "--study", metavar="NAME", help="Study to compare; repeatable. Default: that of the preset."
    ),
]
BandOption = Annotated[
    Literal["se", "sd", "iqr"] | None,
    typer.Option("--band", help="Standard error, standard deviation or quartiles; default: compare.band."),
]


@dataclass(frozen=True)
class _Request:
    """The options, given before or after the name of the sub-command."""

    studies: tuple[str, ...]
    results: Path
    band: Literal["se", "sd", "iqr"] | None
    preset: str | None
    config: Path | None
    overrides: tuple[str, ...]
    as_json: bool
    quiet: bool

    def after(self, before: _Request | None) -> _Request:
        """Return both together; what is given after the name wins."""
        if before is None:
            return self
        return replace(
            self,
            studies=self.studies or before.studies,
            results=before.results if self.results == DEFAULT_RESULTS else self.results,
            band=self.band or before.band,
            preset=self.preset or before.preset,
            config=self.config or before.config,
            overrides=(*before.overrides, *self.overrides),
            as_json=self.as_json or before.as_json,
            quiet=self.quiet or before.quiet,
        )


@dataclass(frozen=True)
class _Data:
    """What is finished in the studies, with recipes labelled study/recipe where there are several."""

    trials: pd.DataFrame
    curves: pd.DataFrame
    planned: dict[str, int]
    explanations: dict[str, str]


@app.callback(invoke_without_command=True)
def compare(
    context: typer.Context,
    study: Studies = None,
    results: Results = DEFAULT_RESULTS,
    band: BandOption = None,
    preset: Preset = None,
    config: ConfigFile = None,
    override: Override = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare the finished trials of a study: print tables, write them and the figures.

    A study that is not finished is drawn as far as it is, and the exit code is 3.
    """
    overrides = tuple(override or ())
    request = _Request(tuple(study or ()), results, band, preset, config, overrides, as_json, quiet)
    context.obj = request
    if context.invoked_subcommand is None:
        _run(request, tables=True, figures=True, save_tables=True)


@app.command()
def plots(
    context: typer.Context,
    study: Studies = None,
    results: Results = DEFAULT_RESULTS,
    band: BandOption = None,
    preset: Preset = None,
    config: ConfigFile = None,
    override: Override = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the figures only, each with the table that it is drawn from."""
    overrides = tuple(override or ())
    request = _Request(tuple(study or ()), results, band, preset, config, overrides, as_json, quiet)
    _run(request.after(context.obj), figures=True)


@app.command()
def tables(
    context: typer.Context,
    study: Studies = None,
    results: Results = DEFAULT_RESULTS,
    preset: Preset = None,
    config: ConfigFile = None,
    override: Override = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the tables only; nothing is written."""
    overrides = tuple(override or ())
    request = _Request(tuple(study or ()), results, None, preset, config, overrides, as_json, quiet)
    _run(request.after(context.obj), tables=True)


def _run(
    request: _Request, *, tables: bool = False, figures: bool = False, save_tables: bool = False
) -> None:
    """Make and print what is asked for, and end with exit code 3 where trials are missing."""
    comparison = _make(request, tables, figures, save_tables)
    if request.as_json:
        emit_json(comparison.document)
    else:
        comparison.show()
    if comparison.missing:
        raise IncompleteError(f"not finished: {'; '.join(comparison.missing)}; shown as far as it is")


@dataclass(frozen=True)
class Comparison:
    """Tables and figures of studies, as made."""

    document: dict[str, Any]
    table: pd.DataFrame | None
    files: list[Path]
    missing: list[str]

    def show(self) -> None:
        """Print the table and the paths of the files."""
        if self.table is not None:
            _print_tables(self.table)
        for file in self.files:
            say(str(file))


def compare_study(name: str, results: Path, band: Literal["se", "sd", "iqr"], quiet: bool) -> Comparison:
    """Make all tables and figures of one study."""
    request = _Request((name,), results, band, None, None, (), False, quiet)
    return _make(request, tables=True, figures=True, save_tables=True)


def _make(request: _Request, tables: bool, figures: bool, save_tables: bool) -> Comparison:
    from ahf_cli.report.store import find_study
    from ahf_cli.report.tables import final_table

    config = resolve(request.preset, request.config, None, request.overrides)
    names = tuple(dict.fromkeys(request.studies)) or (config.study,)
    studies = [find_study(request.results, name) for name in names]
    own = studies[0].folder / "config.yaml"
    if request.preset is None and request.config is None and own.exists():
        config = resolve(None, own, None, request.overrides)
    band = request.band or config.compare.band
    data = _read(studies)
    missing = _missing(data)
    if not len(data.trials) or (data.trials["status"] == "failed").all():
        raise IncompleteError(
            f"no trial of {', '.join(names)} is finished yet: {'; '.join(missing) or 'none planned'}"
        )
    out = studies[0].report_folder
    if len(names) > 1:
        out = out / f"with-{'-'.join(names[1:])}"
    table = final_table(data.trials, data.planned)
    files: list[Path] = []
    if save_tables:
        files += _save_tables(studies, table, out)
    if figures:
        log(f"drawing {len(data.trials)} trials of {', '.join(names)}", request.quiet)
        from ahf_cli.report.figures import figure_2

        files += figure_2(data.trials, data.curves, data.planned, band, out, data.explanations)
    document: dict[str, Any] = {
        "studies": names,
        "band": band,
        "complete": not missing,
        "missing": missing,
        "files": [str(file) for file in files],
    }
    if tables:
        document["final_values"] = table.to_dict("records")
    return Comparison(document, table if tables else None, files, missing)


def _read(studies: list[Study]) -> _Data:
    """Read the finished trials of all studies."""
    import pandas as pd

    from ahf_cli.report.store import curves_frame, trials_frame
    from ahf_cli.report.style import explanations

    trials: list[pd.DataFrame] = []
    curves: list[pd.DataFrame] = []
    planned: dict[str, int] = {}
    said: dict[str, str] = {}
    for study in studies:
        prefix = f"{study.name}/" if len(studies) > 1 else ""
        for frame, frames in ((trials_frame(study), trials), (curves_frame(study), curves)):
            if len(frame):
                frames.append(frame.assign(recipe=prefix + frame["recipe"].astype(str)))
        manifest = study.manifest()
        planned |= {prefix + name: n for name, n in manifest.get("plan", {}).items()}
        said |= {prefix + k: v for k, v in explanations(manifest.get("identity", {})).items()}
    empty = pd.DataFrame(columns=["recipe", "trial", "status", "step"])
    return _Data(
        pd.concat(trials, ignore_index=True) if trials else empty,
        pd.concat(curves, ignore_index=True) if curves else empty,
        planned,
        said,
    )


def _missing(data: _Data) -> list[str]:
    """Say of each recipe that has fewer trials than planned how many it has."""
    done = data.trials[data.trials["status"] != "failed"]["recipe"].value_counts()
    counts = {name: int(done.get(name, 0)) for name in data.planned}
    return [f"{name} {counts[name]} of {n}" for name, n in data.planned.items() if counts[name] < n]


def _save_tables(studies: list[Study], table: pd.DataFrame, out: Path) -> list[Path]:
    from ahf_cli.report.store import atomic_write, write_csv
    from ahf_cli.report.tables import as_text, readable

    for study in studies:
        study.write_derived()
    numbers, text = out / "tables" / "final_values.csv", out / "tables" / "final_values.txt"
    write_csv(numbers, table)
    atomic_write(text, (as_text(readable(table)) + "\n").encode())
    return [numbers, text]


def _print_tables(table: pd.DataFrame) -> None:
    """Print ruled tables on a terminal that is wide enough, aligned text elsewhere."""
    from ahf_cli.report.tables import as_text, is_words, readable

    texts = readable(table)
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        console, all_ruled = Console(), []
        for title, rows in texts.items():
            ruled = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for name in rows.columns:
                ruled.add_column(name, justify="left" if is_words(rows[name]) else "right", no_wrap=True)
            for row in rows.itertuples(index=False):
                ruled.add_row(*row)
            all_ruled.append(ruled)
        # In a narrow terminal, rich would cut digits off.
        unbounded = console.options.update(width=10_000)
        if all(console.measure(r, options=unbounded).maximum <= console.width for r in all_ruled):
            console.print(*all_ruled)
            return
    say(as_text(texts) + "\n")
