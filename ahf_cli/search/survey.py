"""Progress of the studies in a shared storage, and the data that a worker needs to join one."""

from __future__ import annotations

from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from ahf_cli.errors import InputError
from ahf_cli.recipes.hyperparameters import nearest
from ahf_cli.search.slots import MAX_RETRIES, Slots, names
from ahf_cli.search.storage import Storage, TrialFiles
from ahf_cli.training.records import RecipeStatus, Running


def searches(storage: Storage, stage: str = "search") -> list[str]:
    """Return the names of the studies whose searches a storage holds."""
    found = (name.split("/") for name in names(storage))
    return sorted({parts[0] for parts in found if len(parts) == 3 and parts[1] == stage})


def recipes(storage: Storage, study: str, stage: str = "search") -> list[str]:
    """Return the names of a study's Optuna studies, or raise InputError with the nearest study."""
    found = [name for name in names(storage) if name.startswith(f"{study}/{stage}/")]
    if not found:
        known = searches(storage, stage)
        hint = nearest(study, known) if known else "; it has none"
        raise InputError(f"no search {study!r} in storage {storage.where}{hint}")
    return found


def about(storage: Storage, study: str) -> dict[str, Any]:
    """Return the data that a study's search has left for workers: its configuration as YAML, and more."""
    left = [Slots(storage, name, {}).study.user_attrs for name in recipes(storage, study)]
    said = [dict(attributes) for attributes in left if isinstance(attributes.get("config"), str)]
    if not said:
        raise InputError(
            f"study {study!r} in storage {storage.where} has no configuration; run `ahf search` first"
        )
    # A study that has grown in recipes has left its whole configuration with the later ones.
    return max(said, key=lambda attributes: len(attributes["config"]))


def survey(storage: Storage, study: str, stage: str = "search") -> list[RecipeStatus]:
    """Return how far each recipe of a study is."""
    return [_survey(Slots(storage, name, {}), name.split("/")[2]) for name in recipes(storage, study, stage)]


def remove(storage: Storage, study: str) -> None:
    """Delete a study from a storage."""
    files = TrialFiles(storage) if storage.shared else None
    for name in names(storage):
        if name.startswith((f"{study}/search/", f"{study}/prerun/", f"{study}/rerun/")):
            Slots(storage, name, {}).remove()
            if files:
                files.remove(name)


def _survey(slots: Slots, recipe: str) -> RecipeStatus:
    planned = int(slots.study.user_attrs.get("trials", 0))
    complete = slots.complete()
    running = []
    for slot, trial in sorted(slots.running().items()):
        by = trial.user_attrs.get("by", {})
        began = datetime.fromisoformat(by.get("started", "1970-01-01T00:00:00+00:00"))
        seconds = (datetime.now(UTC) - began).total_seconds()
        running.append(Running(slot, str(by.get("host", "")), max(0.0, seconds)))
    times = [t.duration.total_seconds() for t in complete.values() if t.duration is not None]
    diverged = {s for s, t in complete.items() if t.user_attrs.get("status") == "diverged"}
    ok = [t.value for s, t in complete.items() if s not in diverged and t.value is not None]
    lost = [s for s in slots.free(planned) if slots.failures(s) > MAX_RETRIES]
    return RecipeStatus(
        recipe, planned, len(ok), len(diverged), len(lost), tuple(running), min(ok, default=None),
        fmean(times) if times else None,
    )  # fmt: skip
