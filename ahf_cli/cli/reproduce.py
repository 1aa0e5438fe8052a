"""`ahf reproduce`: pre-run, search and comparison in one go."""

from __future__ import annotations

import time
from typing import Any

from ahf_cli.cli import compare, prerun, session
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
    Study,
    Trials,
    emit_json,
    log,
    resolve,
    say,
)


def reproduce(
    design: Design = None,
    preset: Preset = None,
    config: ConfigFile = None,
    trials: Trials = None,
    recipe: Recipe = None,
    override: Override = None,
    study: Study = None,
    results: Results = DEFAULT_RESULTS,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the paper's study: pre-run, search, compare.  Default preset: quick; the full protocol: paper.

    The search takes the ranges of the configuration, not those that the pre-run proposes.  Killed at any
    moment, the same command goes on where it was.
    """
    from ahf_cli.study.store import Study as StudyFolder

    resolved = resolve(
        preset, config, study, override, recipe, trials, device, default_preset="quick", design=design
    )
    started = time.monotonic()
    found = prerun.run(resolved, results, quiet)
    summary = session.run_search(resolved, StudyFolder(results, resolved.study), quiet, "search")
    drawn = compare.compare_study(resolved.study, results, resolved.compare.band, quiet)
    minutes = (time.monotonic() - started) / 60
    if as_json:
        document: dict[str, Any] = {"prerun": found, "search": summary, "compare": drawn.document}
        emit_json(document)
        return
    for line in [*prerun.lines(found), "", *session.say_summary(summary), ""]:
        say(line)
    drawn.show()
    log(f"study {resolved.study!r} is done; this took {minutes:.1f} minutes", quiet)
