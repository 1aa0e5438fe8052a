"""Repair of a study: check every file, set damaged ones aside, and make derived ones anew."""

from __future__ import annotations

import json
from typing import Any

from ahf_cli.config.load import Config
from ahf_cli.errors import InputError
from ahf_cli.study.files import set_aside, write_json
from ahf_cli.study.frames import write_tables
from ahf_cli.study.manifest import first
from ahf_cli.study.store import Study


def repair_folder(study: Study) -> dict[str, Any]:
    """Repair a study's folder, leave it open for writing, and return the findings as plain data.

    Raises:
        InputError: neither manifest nor configuration can be read.
        AhfError: a process has the study open.
    """
    study.lock()
    for stale in study.folder.rglob(".*.tmp"):
        stale.unlink(missing_ok=True)
    before = _aside(study)
    finished = _check_trials(study)
    reruns = _check_trials(study.reruns)
    manifest = _repair_manifest(study, finished)
    write_tables(study)
    return {
        "finished": sum(finished.values()),
        "reruns": sum(reruns.values()),
        "manifest": manifest,
        "set_aside": sorted(_aside(study) - before),
    }


def _check_trials(study: Study) -> dict[str, int]:
    """Read every file of every trial, which sets damaged ones aside; return the finished ones by recipe."""
    finished = {}
    for recipe in study.recipes_on_disk():
        trials = [study.trial(recipe, slot) for slot in study.trials.slots(recipe)]
        finished[recipe] = sum(trial.result() is not None for trial in trials)
        for trial in trials:
            trial.read_params()
            trial.load_checkpoints()
    return finished


def _aside(study: Study) -> set[str]:
    return {str(path) for path in study.folder.rglob("*.corrupt-*")}


def _repair_manifest(study: Study, finished: dict[str, int]) -> str:
    """Make a damaged or missing manifest anew from the configuration and the trials.

    Return the actions in words.
    """
    file = study.folder / "manifest.json"
    try:
        if study.manifest():
            return "is whole"
    except InputError as error:
        if "schema" in str(error) and "reads up to" in str(error):
            raise
        config = _config(study)
        set_aside(file, str(error))
    else:
        config = _config(study)
    plan = {name: max(config.search.trials, finished.get(name, 0)) for name in config.searched}
    identity = config.identity()
    if study.name.startswith("train-"):
        identity, plan = _identity_of_train(study, config)
    again = dict.fromkeys(plan, config.search.reruns) if config.search.design == "fair" else {}
    plans = {"plan": plan, **({"rerun_plan": again} if again else {})}
    write_json(file, first(study.name, identity, {**plans, "repaired": True}))
    return "was made anew from config.yaml"


def _config(study: Study) -> Config:
    try:
        return study.config(with_classes=True)
    except InputError as error:
        raise InputError(
            [f"{study.folder} cannot be repaired without its configuration:", *error.lines]
        ) from None


def _identity_of_train(study: Study, config: Config) -> tuple[dict[str, Any], dict[str, int]]:
    """Return identity and plan of a study of `ahf train`, whose hyperparameters stand in its one trial."""
    for recipe in study.recipes_on_disk():
        for result in study.finished(recipe):
            identity = {**config.searching([recipe]).identity(), "params": result.params}
            return json.loads(json.dumps(identity)), {recipe: 1}
    raise InputError(
        f"{study.folder} cannot be repaired: it has no finished trial; delete it: ahf rm {study.name}"
    )
