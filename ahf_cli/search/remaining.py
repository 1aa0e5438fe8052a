"""What a search still has to train, as its folder says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import IncompleteError

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.study.store import Study


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
    """Return what is left of each recipe's search, without what the folder holds beyond it."""
    return {name: _of(study, config, name) for name in config.searched}


def _of(study: Study, config: Config, name: str) -> Remaining:
    from ahf_cli.search.reruns import SEARCH_SLOT
    from ahf_cli.study.best import best_trial

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
    """Return the configuration with the recipes and trials that the study has besides."""
    from ahf_cli.config.growth import at_least, whole

    if not study.exists():
        return config
    known = study.manifest().get("identity", {}).get("recipes", {})
    # A pre-run has one recipe; those of a search are added to what the study has.
    grown = config if stream else whole(config, known, study.config)
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
