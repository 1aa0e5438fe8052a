"""`ahf reproduce`: pre-run, search and comparison in one command."""

from __future__ import annotations

import time
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
from ahf_cli.cli.session import summary_lines
from ahf_cli.errors import IncompleteError
from ahf_cli.search.summary import refuse_vanished, remaining

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.study.store import Study as StudyFolder


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
    """Run the paper's study: pre-run, search, comparison.

    The default preset is quick; the preset paper is the full protocol.  There is no pre-run if no recipe has
    the hyperparameters that it measures, σ and L.

    The search takes the ranges of the configuration, not the ranges that the pre-run proposes.  After an
    interruption the same command resumes.
    """
    from ahf_cli.study.store import Study as Folder

    resolved = resolve(
        preset, config, study, override, recipe, trials, device, default_preset="quick", design=design
    )
    started = time.monotonic()
    folder = Folder(results, resolved.study)
    left = _left(folder, resolved)
    named = None if config is not None else preset or "quick"
    log(_announcement(folder, resolved, named, left), quiet)
    found = prerun.run(resolved, results, quiet) if _has_prerun(resolved) else None
    summary = session.run_search(resolved, folder, quiet, "search")
    said = [*([*prerun.lines(found), ""] if found else []), *summary_lines(summary), ""]
    try:
        refuse_vanished(*([found] if found else []), summary)
    except IncompleteError:  # too few trials remain for a comparison
        if as_json:
            emit_json({"prerun": found, "search": summary, "compare": None})
        for line in said if not as_json else ():
            say(line)
        raise
    drawn = compare.compare_study(resolved.study, results, resolved.compare.band, quiet)
    minutes = (time.monotonic() - started) / 60
    if as_json:
        document: dict[str, Any] = {"prerun": found, "search": summary, "compare": drawn.document}
        emit_json(document)
        return
    for line in said:
        say(line)
    drawn.show()
    also = f", {folder.prerun.folder / 'figures'}" if found else ""
    say(f"figures in {folder.report_folder / 'figures'}{also}")
    before = "" if left else " and was before, so no trial was trained"
    log(f"study {resolved.study!r} is done{before}; this took {minutes:.1f} minutes", quiet)


def _has_prerun(config: Config) -> bool:
    """Return whether a searched recipe has a hyperparameter that a pre-run measures."""
    used = {key for name in config.searched for key in config.recipe(name).hyperparameters}
    return not used.isdisjoint(("sigma", "smoothness"))


def _left(folder: StudyFolder, config: Config) -> int:
    """Return the number of unfinished runs of pre-run, search and re-runs."""
    parts = [remaining(folder, config)]
    if _has_prerun(config):
        parts.append(remaining(folder.prerun, config.for_prerun()))
    return sum(left.runs for part in parts for left in part.values())


def _announcement(folder: StudyFolder, config: Config, preset: str | None, left: int) -> str:
    """Return the plan of the command in words; a preset's comment adds purpose and time."""
    from ahf_cli.cli.config import preset_purpose
    from ahf_cli.config.load import load, presets

    head, search = f"study {folder.name!r} in {folder.folder}", config.search
    if not left:
        return f"{head} is finished; no trial is trained, and its figures and tables are made again"
    before = f"a pre-run of {config.prerun.trials} trials, then " if _has_prerun(config) else ""
    trials = f"{search.trials} trials of each of {len(search.recipes)} recipes"
    head += f": {before}{trials}, then figures and tables; {left} runs are left to train"
    if preset is None:
        return head
    own = load(preset)  # with other steps or trials than the preset's, its comment states a wrong time
    same = (own.identity(), own.search, own.prerun) == (config.identity(), search, config.prerun)
    return f"{head}. {preset_purpose(presets()[preset].read_text(encoding='utf-8'))}" if same else head
