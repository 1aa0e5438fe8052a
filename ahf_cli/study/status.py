"""How far a study is, read from its folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from ahf_cli.experiment.records import RecipeStatus, Running, TrialResult
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolder


def survey(study: Study) -> list[RecipeStatus]:
    """Return how far each recipe is; running are trials begun by the process that has the study open."""
    sessions = study.manifest().get("sessions") or [{}]
    since = _time(sessions[-1].get("started")) if study.holder() else None
    planned = study.planned()
    return [_survey(study, recipe, planned.get(recipe, 0), since) for recipe in _recipes(study)]


def _recipes(study: Study) -> list[str]:
    return list(dict.fromkeys([*study.planned(), *study.recipes()]))


def _survey(study: Study, recipe: str, planned: int, since: datetime | None) -> RecipeStatus:
    results = study.finished(recipe)
    done = {r.slot for r in results if r.status != "failed"}
    running = []
    for slot in range(planned if since is not None else 0):
        if slot not in done and (found := _running(study.trial(recipe, slot), since)):
            running.append(found)
    lost = {r.slot for r in results if r.status == "failed"} - {r.slot for r in running}
    times = [t for r in results if r.status == "ok" and (t := _duration(study.trial(recipe, r.slot), r))]
    ok = [r for r in results if r.status == "ok"]
    return RecipeStatus(
        recipe,
        planned,
        len(ok),
        sum(r.status == "diverged" for r in results),
        len(lost),
        tuple(running),
        min((r.value for r in ok), default=None),
        fmean(times) if times else None,
    )


def _running(trial: TrialFolder, since: datetime | None) -> Running | None:
    note = trial.read_params() or {}
    began = _time(note.get("started"))
    if began is None or since is None or began < since:
        return None
    return Running(trial.slot, str(note.get("host", "")), (datetime.now(UTC) - began).total_seconds())


def _duration(trial: TrialFolder, result: TrialResult) -> float | None:
    """Return the time from a trial's beginning to its end, None where it ran in several sessions."""
    began, asked = _time(result.started), _time((trial.read_params() or {}).get("started"))
    file = Path(trial.path / "result.json")
    if began is None or asked is None or not file.exists():
        return None
    return max(0.0, file.stat().st_mtime - began.timestamp())


def _time(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else None
