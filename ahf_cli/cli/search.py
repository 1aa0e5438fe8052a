"""`ahf search`: N trials of each recipe, resumable."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ahf_cli.cli import dry_run as dry
from ahf_cli.cli import session
from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    ConfigFile,
    Design,
    Device,
    Json,
    Override,
    Preset,
    Quiet,
    Recipe,
    Results,
    Storage,
    Study,
    Trials,
    emit_json,
    resolve,
    say,
)
from ahf_cli.cli.summary import summary_lines
from ahf_cli.search.remaining import refuse_vanished

Ranges = Annotated[
    Path | None,
    typer.Option(
        "--ranges", metavar="FILE", help="Take search ranges from a file, such as prerun/ranges.yaml."
    ),
]

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print trials, spaces, estimated time and disk; run and write nothing."),
]


def search(
    trials: Trials = None,
    recipe: Recipe = None,
    ranges: Ranges = None,
    dry_run: DryRun = False,
    design: Design = None,
    preset: Preset = None,
    config: ConfigFile = None,
    override: Override = None,
    study: Study = None,
    results: Results = DEFAULT_RESULTS,
    storage: Storage = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the hyperparameters of each recipe: by default 70 Bayesian trials over the paper's ranges.

    Killed at any moment, the same command goes on where it was.
    """
    from ahf_cli.config.load import read_yaml
    from ahf_cli.study.store import Study as StudyFolder

    resolved = resolve(preset, config, study, override, recipe, trials, device, design=design)
    if ranges is not None:
        resolved = resolved.with_ranges(read_yaml(ranges), str(ranges))
    folder = StudyFolder(results, resolved.study)
    if dry_run:
        from ahf_cli.cli.progress import Terminal
        from ahf_cli.search.cost import estimate_cost

        estimate = estimate_cost(resolved, folder, Terminal(quiet))
        if as_json:
            emit_json(estimate)
        else:
            for line in dry.lines(estimate):
                say(line)
        return
    summary = session.run_search(resolved, folder, quiet, "search", storage=storage)
    if as_json:
        emit_json(summary)
    else:
        for line in summary_lines(summary):
            say(line)
    refuse_vanished(summary)
    if not as_json:
        say(f"next: ahf compare --study {resolved.study}{_at(results)}")


def _at(results: Path) -> str:
    """Return the options that name the same results and plug-ins again."""
    from ahf_cli.plugin import LOADED

    own = [] if results == DEFAULT_RESULTS else ["--results", str(results)]
    own += [word for path in LOADED for word in ("--plugin", str(path))]
    return f" {shlex.join(own)}" if own else ""
