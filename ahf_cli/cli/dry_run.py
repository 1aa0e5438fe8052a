"""`ahf search --dry-run`: what a search would do, and how long it would take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ahf_cli.cli import conditions
from ahf_cli.cli.options import log
from ahf_cli.cli.remaining import grown_from, refuse_other_settings, remaining

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.study.store import Study
    from ahf_cli.training.estimate import Slice


def estimate(config: Config, study: Study, quiet: bool) -> dict[str, Any]:
    """Time a slice of each recipe with trials left, and return the estimate as plain data.

    Raises InputError where the folder holds a study with other settings, which a search refuses.
    """
    import torch

    from ahf_cli.training import estimate as e

    refuse_other_settings(study, grown_from(study, config))
    left = {name: found for name, found in remaining(study, config).items() if found.runs}
    if not left:
        return {"study": config.study, "folder": str(study.folder), "hours": 0.0, "recipes": {}}
    spec, plan = conditions.task_spec(config), conditions.plan_of(config)
    workers, batch = conditions.workers_and_batch(config, spec.device)
    torch.set_num_threads(conditions.threads_of(spec.device))
    task = spec.load()
    per_evaluation = e.time_evaluation(task, e.images_per_evaluation(task, plan.eval_subset), plan.seed)
    recipes: dict[str, Any] = {}
    for name in left:
        log(f"timing {name}", quiet)
        found = e.time_slice(task, config.recipe(name), config.space(name), plan.seed)
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
        "hours": total / workers / 3600,
        "megabytes": sum(_runs(r) * r["bytes_per_trial"] for r in recipes.values()) / 1e6,
        "recipes": recipes,
    }


def _runs(recipe: dict[str, Any]) -> int:
    return int(recipe["trials"] + recipe["reruns"])


def _bytes(found: Slice, steps: int, evaluations: int) -> float:
    """Size of a trial's folder: its steps as they compress, and a line of about 200 bytes an evaluation."""
    import gzip

    from ahf_cli.study.files import csv_bytes
    from ahf_cli.study.trial_folder import rows_frame
    from ahf_cli.training.records import StepRow

    compressed = len(gzip.compress(csv_bytes(rows_frame(found.rows, StepRow))))
    return compressed / max(1, len(found.rows)) * steps + 200 * evaluations + 2000


def lines(document: dict[str, Any]) -> list[str]:
    """Return an estimate as lines for a person, with its assumptions."""
    if not document["recipes"]:
        return [
            f"nothing is left to do: all trials of {document['study']} are finished in {document['folder']}"
        ]
    found = []
    for name, r in document["recipes"].items():
        space = ", ".join(
            f"{key} [{low:g}, {high:g}]{' log' if is_log else ''}"
            for key, (low, high, is_log) in r["space"].items()
        )
        again = f", then {r['reruns']} re-runs of the best" if r["reruns"] else ""
        more = f" of {r['steps']} steps" if r["steps"] != document["steps"] else ""
        done = f" of {r['planned']}, the others are finished," if r["trials"] < r["planned"] else ""
        found.append(
            f"{name}: {r['trials']} trials{done}{more} over {space or 'nothing: all is fixed'}{again}"
        )
        found.append(
            f"  {r['seconds_per_step']:.3f} s a step with {r['cg_iterations']:.1f} CG iterations, "
            f"{r['seconds_per_trial'] / 60:.1f} min a trial, {r['evaluation_share']:.0%} of it evaluation"
        )
    workers = document["workers"]
    found.append(
        f"together: {document['hours']:.1f} hours on {workers} worker(s) ({document['device']}), "
        f"{document['megabytes']:.0f} MB on disk"
    )
    found.append(
        f"assumed: {document['steps']} steps a trial, none diverges early; a step costs what it costs around "
        "step 20 at the middle of the search space; workers do not slow each other down"
    )
    return found
