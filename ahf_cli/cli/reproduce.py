"""`ahf reproduce`: pre-run, search and comparison in one go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ahf_cli.cli.remaining import refuse_vanished
from ahf_cli.cli.summary import summary_lines

if TYPE_CHECKING:
    from ahf_cli.experiment.config import Config


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
    log(_announcement(resolved, results, None if config is not None else preset or "quick"), quiet)
    found = prerun.run(resolved, results, quiet)
    summary = session.run_search(resolved, StudyFolder(results, resolved.study), quiet, "search")
    drawn = compare.compare_study(resolved.study, results, resolved.compare.band, quiet)
    minutes = (time.monotonic() - started) / 60
    if as_json:
        document: dict[str, Any] = {"prerun": found, "search": summary, "compare": drawn.document}
        emit_json(document)
        refuse_vanished(found, summary)
        return
    for line in [*prerun.lines(found), "", *summary_lines(summary), ""]:
        say(line)
    drawn.show()
    refuse_vanished(found, summary)
    log(f"study {resolved.study!r} is done; this took {minutes:.1f} minutes", quiet)


def _announcement(config: Config, results: Path, preset: str | None) -> str:
    """Return what is about to be done, and how long it takes: a preset's own words say that."""
    from ahf_cli.cli.config import preset_purpose
    from ahf_cli.experiment.config import presets

    search = config.search
    head = (
        f"study {config.study!r} in {results / config.study}: a pre-run of {config.prerun.trials} trials, "
        f"then {search.trials} trials of each of {len(search.recipes)} recipes, then figures and tables"
    )
    return (
        head if preset is None else f"{head}. {preset_purpose(presets()[preset].read_text(encoding='utf-8'))}"
    )
