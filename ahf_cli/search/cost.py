"""The cost of a search before it runs: time and disk, from a timed slice of each recipe."""

from __future__ import annotations

import gzip
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from ahf_cli.config.load import Config
from ahf_cli.errors import InputError
from ahf_cli.search.machine import plan_of, refuse_classes, task_spec, threads_of, workers_and_batch
from ahf_cli.search.plan import Reporter, ShouldStop, never
from ahf_cli.search.summary import grown_from, refuse_other_settings, remaining
from ahf_cli.study.columns import rows_frame
from ahf_cli.study.costs import FILE, Costs
from ahf_cli.study.files import csv_bytes, write_json
from ahf_cli.study.manifest import plain
from ahf_cli.study.store import Study
from ahf_cli.training import estimate as e
from ahf_cli.training import timing
from ahf_cli.training.environment import describe, numerical_path
from ahf_cli.training.estimate import Slice
from ahf_cli.training.records import StepRow


def estimate_cost(config: Config, study: Study, reporter: Reporter) -> dict[str, Any]:
    """Time a slice of each recipe with trials left, and return the estimate as plain data.

    Raises InputError where the folder holds a study with other settings, which a search refuses.
    """
    refuse_other_settings(study, grown_from(study, config))
    left = {name: found for name, found in remaining(study, config).items() if found.runs}
    if not left:
        return {"study": config.study, "folder": str(study.folder), "hours": 0.0, "recipes": {}}
    refuse_classes(config, config.searched)
    spec, plan = task_spec(config), plan_of(config)
    workers, batch = workers_and_batch(config, spec.device)
    torch.set_num_threads(threads_of(spec.device))
    task = spec.load()
    per_evaluation = e.time_evaluation(
        task, e.images_per_evaluation(task, plan.eval_subset), plan.seed, batch
    )
    recipes: dict[str, Any] = {}
    for name in left:
        reporter.say(f"timing {name}")
        found = e.time_slice(task, config.recipe(name), config.space(name), plan.seed, batch)
        own = plan.of(name)
        evaluations = e.evaluations(own.steps, own.eval_every)
        seconds = found.seconds_per_step * own.steps + per_evaluation * evaluations
        recipes[name] = {
            "planned": config.search.trials,
            "trials": left[name].trials,
            "reruns": left[name].reruns,
            "space": {key: [r.low, r.high, r.log] for key, r in config.space(name).items()},
            "steps": own.steps,
            "seconds_per_step": found.seconds_per_step,
            "cg_iterations": found.cg_iterations,
            "evaluation_share": per_evaluation * evaluations / seconds,
            "seconds_per_trial": seconds,
            "bytes_per_trial": _bytes(found, own.steps, evaluations),
        }
    total = sum(_runs(r) * r["seconds_per_trial"] for r in recipes.values())
    return {
        "study": config.study,
        "folder": str(study.folder),
        "steps": plan.steps,
        "evaluations": e.evaluations(plan.steps, plan.eval_every),
        "seconds_per_evaluation": per_evaluation,
        "workers": workers,
        "batch": batch,
        "device": spec.device,
        "numerics": numerical_path(spec.device),
        "hours": total / workers / 3600,
        "megabytes": sum(_runs(r) * r["bytes_per_trial"] for r in recipes.values()) / 1e6,
        "recipes": recipes,
    }


def _runs(recipe: dict[str, Any]) -> int:
    return int(recipe["trials"] + recipe["reruns"])


def _bytes(found: Slice, steps: int, evaluations: int) -> float:
    """Size of a trial's folder: its steps as they compress, and a line of about 200 bytes an evaluation."""
    compressed = len(gzip.compress(csv_bytes(rows_frame(found.rows, StepRow))))
    return compressed / max(1, len(found.rows)) * steps + 200 * evaluations + 2000


def measure_costs(
    config: Config, study: Study, reporter: Reporter, should_stop: ShouldStop = never
) -> Costs | None:
    """Time the operations of a study and a step of each of its recipes, and write `costs.json`.

    The study is open for writing.  Returns None, and writes nothing, where it was stopped.

    Raises InputError where trials of the study were computed by another numerical path than this process's,
    or where an optimizer class cannot train.
    """
    refuse_classes(config, config.searched)
    spec = task_spec(config)
    about = describe(spec.device)
    refuse_other_path(study, about["numerics"])
    _, batch = workers_and_batch(config, spec.device)
    recipes = {name: (config.recipe(name), config.space(name)) for name in config.searched}
    reporter.say(f"timing gradients, products and a few steps of {len(recipes)} recipes, for {FILE}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(spec.device))
    try:
        found = timing.measure(spec.load(), recipes, config.seed, batch, should_stop)
    finally:
        torch.set_num_threads(before)
    if found is None:
        return None
    identity = plain(config.identity())
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {
        "format": 1, **asdict(found), "task": identity.get("task", {}), "measured": {"at": now, **about},
    }  # fmt: skip
    costs = Costs.model_validate(plain(content))
    write_json(study.folder / FILE, content)
    return costs


def refuse_other_path(study: Study, numerics: str) -> None:
    """Raise InputError if a session of the study computed by another numerical path."""
    other = {s.get("numerics", "pytorch") for s in study.manifest().get("sessions", [])} - {numerics}
    if other:
        raise InputError(
            f"costs of {study.name!r} must be measured by the path of its trials, "
            f"{', '.join(sorted(other))}, and this process computes by {numerics}"
        )
