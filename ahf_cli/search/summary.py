"""The summary of a search as plain data: counts, its best trial and the re-runs of that."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ahf_cli.config.load import Config
from ahf_cli.search.remaining import remaining
from ahf_cli.study.best import best_trial, own_value
from ahf_cli.study.store import Study
from ahf_cli.tasks.metrics import Metrics
from ahf_cli.training.records import TrialResult


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
            "stalled": sum(r.stalled for r in results),
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
        "mean_value": fmean(own_value(r) for r in ok) if ok else None,
        **_tests("mean", ok, metrics),
    }


def _tests(head: str, results: Sequence[TrialResult], metrics: Metrics) -> dict[str, float | None]:
    """Return the mean of each metric of the test set, None without results."""
    names = [f"test_{metric.name}" for metric in metrics.all]
    return {f"{head}_{k}": fmean(r.measured[k] for r in results) if results else None for k in names}
