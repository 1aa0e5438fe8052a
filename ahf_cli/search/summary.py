"""A search's remaining work, and its summary as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import IncompleteError, InputError
from ahf_cli.study.trials import best_trial, own_value

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.study.store import Study
    from ahf_cli.tasks.metrics import Metrics
    from ahf_cli.training.records import TrialResult


@dataclass(frozen=True)
class Remaining:
    """Trials and re-runs of one recipe that are not finished."""

    trials: int
    reruns: int

    @property
    def runs(self) -> int:
        """Number of both together."""
        return self.trials + self.reruns


def remaining(study: Study, config: Config) -> dict[str, Remaining]:
    """Return the remaining trials of each recipe's search; further trials in the folder do not count."""
    return {name: _of(study, config, name) for name in config.searched}


def _of(study: Study, config: Config, name: str) -> Remaining:
    from ahf_cli.search.plan import SEARCH_SLOT
    from ahf_cli.study.trials import best_trial

    results = study.finished(name)
    done = {r.slot for r in results if r.status != "failed" and r.slot < config.search.trials}
    left, best = config.search.trials - len(done), best_trial(results)
    if config.search.design != "fair" or (best is None and not left):
        return Remaining(left, 0)
    again = {
        r.slot
        for r in study.reruns.finished(name)
        if r.status != "failed" and r.slot < config.search.reruns
        if best is not None and r.extra.get(SEARCH_SLOT) == best.slot
    }
    return Remaining(left, config.search.reruns - len(again))


def grown_from(study: Study, config: Config, stream: int = 0) -> Config:
    """Return the configuration with the recipes and trials that the study has besides.

    Raises InputError with one line for each recipe of an optimizer class that is not installed.
    """
    from ahf_cli.config.growth import at_least, whole
    from ahf_cli.recipes.classes import absent

    if not study.exists():
        return config
    known = study.manifest().get("identity", {}).get("recipes", {})
    # A pre-run has one recipe; recipes of a search are added to the study's.
    grown = config if stream else whole(config, known, study.config)
    if missing := [
        f"recipe {name}: {why}" for name in grown.searched if (why := absent(grown.recipe(name).structure))
    ]:  # its defaults belong to the identity
        raise InputError(missing)
    return at_least(grown, max(study.planned().values(), default=0))


def refuse_other_settings(study: Study, config: Config) -> None:
    """Raise InputError, as a search does, where the folder holds a study with other settings."""
    from ahf_cli.study.manifest import plain, refuse_other

    if manifest := study.manifest():
        refuse_other(study.name, manifest.get("identity", {}), plain(config.identity()))


def refuse_vanished(*summaries: dict[str, Any]) -> None:
    """Raise IncompleteError where a finished search has fewer trials on disk than it trained."""
    lines = []
    for summary in summaries:
        gone = [f"{name} {found}" for name, r in summary["recipes"].items() if (found := _gone(r))]
        if gone:
            lines.append(
                f"finished trials have vanished from {summary['folder']}, of which are left: "
                f"{', '.join(gone)}; the same command trains the others again"
            )
    if lines:
        raise IncompleteError(lines)


def _gone(recipe: dict[str, Any]) -> str:
    """Return how many trials and re-runs are left of how many; "" where all are."""
    pairs = (
        ("trials", recipe["missing"], recipe["planned"]),
        ("re-runs", recipe["missing_reruns"], recipe["planned_reruns"]),
    )
    return " and ".join(f"{n - lost} of {n} {what}" for what, lost, n in pairs if lost)


def summarize(study: Study, config: Config, seconds: float) -> dict[str, Any]:
    """Return a search's summary as plain data; values are the trials' own, without the cap at chance."""
    recipes = {}
    for name, left in remaining(study, config).items():
        results = study.finished(name)
        best = best_trial(results)
        recipes[name] = {
            "planned": config.search.trials,
            "missing": left.trials,
            "planned_reruns": config.search.reruns if config.search.design == "fair" else 0,
            "missing_reruns": left.reruns,
            "trials": len(results),
            "ok": sum(r.status == "ok" for r in results),
            "diverged": sum(r.status == "diverged" for r in results),
            "outcomes": _outcomes(results, config.metrics),
            "objective": config.search.objective,
            "best_trial": best.slot if best else None,
            "best_value": own_value(best) if best else None,
            "best_params": best.params if best else None,
            **_tests("best", [best] if best else [], config.metrics),
            "reruns": _reruns(study, name, config.metrics),
        }
    return {"study": study.name, "folder": str(study.folder), "seconds": seconds, "recipes": recipes}


def _reruns(study: Study, name: str, metrics: Metrics) -> dict[str, Any] | None:
    """Return counts and means of a recipe's re-runs, means of those that did not diverge."""
    results = study.reruns.finished(name)
    ok = [r for r in results if r.status == "ok"]
    if not results:
        return None
    return {
        "runs": len(results),
        "diverged": sum(r.status == "diverged" for r in results),
        "outcomes": _outcomes(results, metrics),
        "mean_value": fmean(own_value(r) for r in ok) if ok else None,
        **_tests("mean", ok, metrics),
    }


def _outcomes(results: Sequence[TrialResult], metrics: Metrics) -> dict[str, int]:
    """Return the number of finished trials by outcome."""
    from ahf_cli.training.outcome import OUTCOMES, outcome

    found = [outcome(result, metrics.headline) for result in results]
    return {what: found.count(what) for what in OUTCOMES}


def _tests(head: str, results: Sequence[TrialResult], metrics: Metrics) -> dict[str, float | None]:
    """Return the mean of each metric of the test set, None without results."""
    names = [f"test_{metric.name}" for metric in metrics.all]
    return {f"{head}_{k}": fmean(r.measured[k] for r in results) if results else None for k in names}
