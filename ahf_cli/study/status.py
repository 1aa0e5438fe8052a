"""How far a study is, read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from ahf_cli.study.columns import columns, metrics_in
from ahf_cli.study.opening import DamagedError
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolder
from ahf_cli.study.trials import best_trial, own_value
from ahf_cli.training.records import CurveRow, RecipeStatus, Running, TrialResult


def survey(study: Study) -> tuple[list[RecipeStatus], list[str]]:
    """Return how far each recipe is, and one line for each damaged trial.

    Running are trials begun by the process that has the study open.
    """
    sessions = study.manifest().get("sessions") or [{}]
    since = _time(sessions[-1].get("started")) if study.holder() else None
    planned = study.planned()
    found, damaged = [], []
    for recipe in dict.fromkeys([*planned, *study.recipes()]):
        results, problems = study.results_of([recipe])
        damaged += problems
        found.append(_survey(study, recipe, results, planned.get(recipe, 0), since))
    return found, damaged


def _survey(
    study: Study, recipe: str, results: Sequence[TrialResult], planned: int, since: datetime | None
) -> RecipeStatus:
    done = {r.slot for r in results if r.status != "failed"}
    running = []
    for slot in range(planned if since is not None else 0):
        if slot not in done and (found := _running(study.trial(recipe, slot), since)):
            running.append(found)
    lost = {r.slot for r in results if r.status == "failed"} - {r.slot for r in running}
    times = [t for r in results if r.status == "ok" and (t := _duration(study, r)) is not None]
    best = best_trial(results)
    return RecipeStatus(
        recipe,
        planned,
        sum(r.status == "ok" for r in results),
        sum(r.status == "diverged" for r in results),
        len(lost),
        tuple(running),
        own_value(best) if best else None,
        fmean(times) if times else None,
    )


def _running(trial: TrialFolder, since: datetime | None) -> Running | None:
    """Return how far a trial is that this session began; None where it is none."""
    try:
        note, curve = trial.note() or {}, trial.running_curve()
    except DamagedError:
        return None
    began = _time(note.get("started"))
    if began is None or since is None or began < since:
        return None
    last = CurveRow.of(curve.slice(len(curve) - 1).to_pylist()[0]) if len(curve) and _whole(curve) else None
    seconds = (datetime.now(UTC) - began).total_seconds()
    return Running(trial.slot, str(note.get("host", "")), seconds, last)


def _whole(curve: Any) -> bool:
    measured = metrics_in(curve.column_names, CurveRow)
    return bool(measured) and set(columns(CurveRow, measured)) == set(curve.column_names)


def _duration(study: Study, result: TrialResult) -> float | None:
    """Return the time from a trial's beginning to its end, None where it is not known."""
    if study.pack is not None:
        return None
    trial = study.trial(result.recipe, result.slot)
    try:
        asked = _time((trial.note() or {}).get("started"))
        ended = (trial.path / "result.json").stat(follow_symlinks=False).st_mtime
    except (DamagedError, OSError):
        return None
    began = _time(result.started)
    return None if began is None or asked is None else max(0.0, ended - began.timestamp())


def _time(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else None
