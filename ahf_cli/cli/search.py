"""`ahf search`: N trials of each recipe, resumable."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ahf_cli.cli import session
from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    ConfigFile,
    Design,
    Device,
    Json,
    Log,
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
from ahf_cli.cli.session import summary_lines
from ahf_cli.search.summary import refuse_vanished


def estimate_lines(document: dict[str, Any]) -> list[str]:
    """Return an estimate of costs as lines of text, with its assumptions."""
    if not document["recipes"]:
        return [f"all trials of {document['study']} are finished in {document['folder']}"]
    found = []
    for name, r in document["recipes"].items():
        space = ", ".join(
            f"{key} [{low:g}, {high:g}]{' log' if is_log else ''}"
            for key, (low, high, is_log) in r["space"].items()
        )
        again = f", then {r['reruns']} re-runs of the best" if r["reruns"] else ""
        more = f" of {r['steps']} steps" if r["steps"] != document["steps"] else ""
        done = f" of {r['planned']}, the others are finished," if r["trials"] < r["planned"] else ""
        found.append(
            f"{name}: {r['trials']} trials{done}{more} over {space or 'no free hyperparameter'}{again}"
        )
        found.append(
            f"  {r['seconds_per_step']:.3f} s a step with {r['cg_iterations']:.1f} CG iterations, "
            f"{r['seconds_per_trial'] / 60:.1f} min a trial, {r['evaluation_share']:.0%} of it evaluation"
        )
    workers, batch = document["workers"], document["batch"]
    side = f", each with {batch} trials side by side" if batch > 1 else ""
    where = f"{document['device']}, numerical path {document['numerics']}"
    found.append(
        f"together: {document['hours']:.1f} hours on {workers} worker(s) ({where}){side}, "
        f"{document['megabytes']:.0f} MB on disk"
    )
    found.append(
        f"assumed: {document['steps']} steps a trial, no early divergence, independent workers; a step takes "
        "the time around step 20 at the middle of the search space"
    )
    return found


Ranges = Annotated[
    Path | None,
    typer.Option(
        "--ranges", metavar="FILE", help="Take search ranges from a file, such as prerun/ranges.yaml."
    ),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Time some steps, and print trials, spaces, estimated time and disk; write nothing."
    ),
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
    log: Log = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the hyperparameters of each recipe: by default 70 Bayesian trials over the paper's ranges.

    After an interruption the same command resumes.
    """
    from ahf_cli.config.strict_yaml import read_yaml
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
            for line in estimate_lines(estimate):
                say(line)
        return
    summary = session.run_search(resolved, folder, quiet, "search", storage=storage, log=log)
    if as_json:
        emit_json(summary)
    else:
        for line in summary_lines(summary):
            say(line)
    refuse_vanished(summary)
    if not as_json:
        say(f"next: ahf compare --study {resolved.study}{_at(results)}")


def _at(results: Path) -> str:
    """Return the options that select the same results and plug-ins, as text."""
    from ahf_cli.plugin import LOADED

    own = [] if results == DEFAULT_RESULTS else ["--results", str(results)]
    here = Path.cwd()
    for path in LOADED:
        own += ["--plugin", str(path.relative_to(here) if path.is_relative_to(here) else path)]
    return f" {shlex.join(own)}" if own else ""
