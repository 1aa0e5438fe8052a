"""A study as tidy tables, the source of every figure, table and report.

study = load_study("results/quick")
study.trials.groupby("recipe")["test_accuracy"].describe()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ahf_cli.recipes.classes import declare_arguments
from ahf_cli.recipes.document import sentences
from ahf_cli.report.description import description
from ahf_cli.report.outcomes import with_outcomes
from ahf_cli.report.work import CostWords, cost_words, costs_of, counted, with_work
from ahf_cli.study.costs import Costs
from ahf_cli.study.find import find_study
from ahf_cli.study.frames import results_frame, rows_frame
from ahf_cli.study.store import Study
from ahf_cli.tasks.metrics import Column, Metrics, metrics_of
from ahf_cli.training.records import StepRow, TrialResult

INDEPENDENT = {"random", "qmc"}
"""Samplers of independent trials."""
_STEP_COLUMNS = [f.name for f in fields(StepRow)]


@dataclass(frozen=True)
class StudyData:
    """The finished trials of a study, or of several, as pandas tables.

    Recipes of several studies are named `label/recipe`.
    """

    names: tuple[str, ...]
    study: Study
    """the first study"""
    manifests: Mapping[str, Mapping[str, Any]]
    """`manifest.json` by study label"""
    planned: Mapping[str, int]
    """number of planned trials by recipe"""
    trials: pd.DataFrame
    """one row a trial: recipe, trial (its slot), status, outcome, …, `params.*`, `extra.*`"""
    curves: pd.DataFrame
    """one row a trial and evaluation: recipe, trial, status, the fields of `CurveRow`, and `with_work`"""
    reruns: pd.DataFrame
    """re-runs of the best configuration with new seeds, as `trials`; `trial` is the replicate"""
    rerun_curves: pd.DataFrame
    reruns_planned: Mapping[str, int]
    problems: tuple[str, ...]
    """faults of the files, one line each"""
    sources: tuple[tuple[str, Study], ...]
    """label prefix and study"""
    costs: tuple[Costs, ...] = ()
    """measured costs of each study; empty unless all have them"""

    def __repr__(self) -> str:
        """Return places, state, trials by recipe, the best trial and the next command, one line each."""
        ended = self.trials[self.trials["status"] != "failed"]["recipe"].value_counts()
        return description(
            [study for _, study in self.sources], next(iter(self.manifests.values())),
            {str(recipe): int(count) for recipe, count in ended.items()}, self.planned, self.missing,
            self.best, self.minimized.label,
        )  # fmt: skip

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row a trial and step, read on demand: recipe, trial, status and the fields of `StepRow`."""
        frames = [_prefixed(_steps(study), prefix) for prefix, study in self.sources]
        return _joined(frames, ["recipe", "trial", "status", *_STEP_COLUMNS])

    @cached_property
    def prerun(self) -> tuple[pd.DataFrame, str]:
        """Steps of the first study's pre-run (no rows without one), and the norm in its step size."""
        study = self.sources[0][1].prerun
        names = study.recipes()
        if not names:
            return pd.DataFrame(columns=["trial", *_STEP_COLUMNS]), "l2"
        described = study.manifest().get("identity", {}).get("recipes", {}).get(names[0], {})
        return _steps(study, names[:1]), str(described.get("structure", {}).get("norm", "l2"))

    @cached_property
    def cost_words(self) -> CostWords:
        """The definition of work and seconds."""
        return cost_words(self.curves, self.costs)

    @property
    def recipes(self) -> list[str]:
        """Names of the planned recipes, then of others that have trials."""
        return recipe_names(self.trials, self.planned)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity of the first study: seed, task, train, search, recipes, spaces."""
        return dict(next(iter(self.manifests.values())).get("identity", {}))

    @cached_property
    def metrics(self) -> Metrics:
        """Metrics of the first study's task; with a study of another task there is a refusal, no verdict."""
        found = _metrics(next(iter(self.manifests.values())))
        first = self.curves[self.curves["step"] == 0]
        known = [c for c in found.curve_columns if c in first]
        return found.starting({c: float(first[c].median()) for c in known} if len(first) else {})

    @property
    def design(self) -> str:
        """The design that all studies have, else `paper`."""
        found = {search.get("design", "paper") for search in self._searches}
        return str(next(iter(found))) if len(found) == 1 else "paper"

    @property
    def identities(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Prefix of the recipes' names, and identity, of each study."""
        pairs = zip(self.sources, self.manifests.values(), strict=True)
        return [(prefix, manifest.get("identity", {})) for (prefix, _), manifest in pairs]

    @property
    def _searches(self) -> list[Mapping[str, Any]]:
        return [identity.get("search", {}) for _, identity in self.identities]

    @property
    def contrasts(self) -> list[list[str]]:
        """Pairs of recipes that were named before the run, for tests; [] for all pairs."""
        return list(self.identity.get("contrasts", [])) if len(self.manifests) == 1 else []

    @property
    def shared_seed(self) -> bool:
        """Whether all draws of some study share one training seed."""
        return any(search.get("seeds", "one") == "one" for search in self._searches)

    @property
    def one_seed(self) -> bool:
        """Whether all draws of a fair design share one training seed, as in older studies."""
        return self.design == "fair" and self.shared_seed

    @property
    def independent(self) -> bool:
        """Whether trials are independent: drawn by random or quasi-random samplers."""
        found = {str(s.get("sampler", "tpe")).lower().removesuffix("sampler") for s in self._searches}
        return found <= INDEPENDENT

    @property
    def objective(self) -> str:
        """The column that the search minimized."""
        return str(self.identity.get("search", {}).get("objective", "train_loss"))

    @property
    def minimized(self) -> Column:
        """The objective as a column with label and unit."""
        return self.metrics.column(self.objective)

    @property
    def best(self) -> pd.DataFrame:
        """The trial with the least value of each recipe, by recipe; diverged trials are left out."""
        ok = self.trials[self.trials["status"] == "ok"].sort_values(["value", self.objective, "trial"])
        return ok.drop_duplicates("recipe").set_index("recipe")

    def of_recipes(self, key: str) -> dict[str, dict[str, Any]]:
        """Return the section `recipes` or `spaces` of the identities, by recipe."""
        sections = ((prefix, identity.get(key, {})) for prefix, identity in self.identities)
        return {prefix + name: dict(found) for prefix, own in sections for name, found in own.items()}

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """Structure and fixed hyperparameters of each recipe."""
        return self.of_recipes("recipes")

    @property
    def explanations(self) -> dict[str, str]:
        """A sentence that describes each recipe."""
        return {prefix + k: v for prefix, identity in self.identities for k, v in sentences(identity).items()}

    @property
    def _hopeless(self) -> set[str]:
        """Recipes whose trials are finished and have all diverged, so that no trial can run again."""
        ok = set(self.trials[self.trials["status"] == "ok"]["recipe"])
        counts = self.trials[self.trials["status"] != "failed"]["recipe"].value_counts()
        return {k for k, n in self.planned.items() if counts.get(k, 0) >= n and k not in ok}

    @property
    def missing(self) -> list[str]:
        """One line for each recipe with fewer trials or re-runs than planned: both numbers."""
        lines = []
        for frame, plan, what in (
            (self.trials, self.planned, ""), (self.reruns, self.reruns_planned, " re-runs"),
        ):  # fmt: skip
            done = frame[frame["status"] != "failed"]["recipe"].value_counts()
            hopeless = self._hopeless if what else ()
            lines += [
                f"{k} {done.get(k, 0)} of {n}{what}"
                for k, n in plan.items()
                if done.get(k, 0) < n and k not in hopeless
            ]
        return lines


def load_study(path: str | Path, results: str | Path = "results") -> StudyData:
    """Return the finished trials of a study, by its path or its name, in folders or packed.

    Args:
        path: a path, such as `results/quick`, or a name.
        results: the folder that is searched for a name, before its sub-folder `reference`.

    Raises:
        InputError: an unknown study; the line has the nearest name.
    """
    folder = Path(path)
    if len(folder.parts) > 1:
        return read_study(find_study(folder.parent, folder.name))
    return read_study(find_study(Path(results), str(path)))


def read_study(study: Study) -> StudyData:
    """Return the finished trials of a study."""
    manifest = study.manifest()
    declare_arguments(manifest.get("identity", {}))
    costs, faults = costs_of(study, study.recipes())
    trials, curves, problems = _read(study, "trial", manifest, costs)
    reruns, rerun_curves, more = _read(study.reruns, "re-run", manifest, costs)
    return StudyData(
        (study.name,), study, {study.name: manifest}, dict(manifest.get("plan", {})), trials, curves,
        reruns, rerun_curves, dict(manifest.get("rerun_plan", {})), tuple(problems + more + faults),
        (("", study),), () if costs is None else (costs,),
    )  # fmt: skip


def pool(studies: Mapping[str, StudyData]) -> StudyData:
    """Return studies side by side under their labels, or a single study unchanged."""
    if len(studies) == 1:
        return next(iter(studies.values()))

    measured = all(data.costs for data in studies.values())

    def joined(name: str) -> pd.DataFrame:
        frames = [_prefixed(getattr(data, name), f"{label}/") for label, data in studies.items()]
        if name.endswith("curves") and not measured:  # one definition of work for all
            frames = [counted(frame) for frame in frames]
        return _joined(frames, list(frames[0].columns))

    def plans(name: str) -> dict[str, int]:
        return {f"{label}/{k}": n for label, data in studies.items() for k, n in getattr(data, name).items()}

    first = next(iter(studies.values()))
    return StudyData(
        tuple(studies), first.study, {k: m for k, d in studies.items() for m in d.manifests.values()},
        plans("planned"), joined("trials"), joined("curves"), joined("reruns"), joined("rerun_curves"),
        plans("reruns_planned"), tuple(f"{k}: {p}" for k, d in studies.items() for p in d.problems),
        tuple((f"{label}/", study) for label, data in studies.items() for _, study in data.sources),
        tuple(found for data in studies.values() for found in data.costs) if measured else (),
    )  # fmt: skip


def _steps(study: Study, recipes: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the steps of a study's finished trials, of all recipes by default."""
    results, _ = study.results_of(study.recipes() if recipes is None else recipes)
    return rows_frame(results, study.reader.steps(results))


def _metrics(manifest: Mapping[str, Any]) -> Metrics:
    written, task = manifest.get("metrics"), manifest.get("identity", {}).get("task")
    return Metrics.of_data(written) if written else metrics_of(task if isinstance(task, Mapping) else {})


def _read(
    study: Study, what: str, manifest: Mapping[str, Any], costs: Costs | None
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return the finished trials of a study, their curves, and one line for each problem."""
    results, damaged = study.read_results()
    read = study.reader.curves(results)
    curves = with_work(rows_frame(results, read), manifest, costs)
    problems = [f"{what} {line}" for line in (*damaged, *read.problems)]
    if not results:
        return _empty_trials(), curves, problems
    by_key = {(r.recipe, r.slot): r for r in results}
    own = dict(iter(curves.groupby(["recipe", "trial"], sort=False)))
    for (recipe, slot), result in by_key.items():
        fault = _fault(own[recipe, slot], result) if (recipe, slot) in own else "has no rows"
        if fault and result.status != "failed":
            problems.append(f"{what} {recipe}/{slot:03d}: curve.csv {fault}")
    return judged(study, results, manifest), curves, problems


def judged(
    study: Study, results: Sequence[TrialResult], manifest: Mapping[str, Any],
    steps: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return results of a study as a table with their outcomes; `steps` are theirs, if they are read."""
    by_key = {(r.recipe, r.slot): r for r in results}

    def steps_of(some: pd.DataFrame) -> pd.DataFrame:
        if steps is not None:
            return steps.merge(some[["recipe", "trial"]])
        own = [by_key[key] for key in zip(some["recipe"], some["trial"], strict=True)]
        return rows_frame(own, study.reader.steps(own))

    task = manifest.get("identity", {}).get("task", {})
    return with_outcomes(results_frame(results), _metrics(manifest).headline, steps_of, task)


def _fault(curve: pd.DataFrame, result: TrialResult) -> str:
    """Return the fault of a trial's curve, or ''."""
    ended = result.status == "ok"
    needed = [c for c in result.measured if c == "train_loss" or c.startswith("test_")]
    if absent := [c for c in needed if c not in curve]:
        return f"lacks {', '.join(absent)}"
    if ended and curve[needed].isna().any(axis=None):
        lacks = [c for c in needed if curve[c].isna().all()]
        return f"lacks {', '.join(lacks)}" if lacks else "has values that are missing or not finite"
    if not curve["step"].is_monotonic_increasing or curve["step"].duplicated().any():
        return "has steps out of order"
    if ended and curve["step"].iloc[-1] < result.planned_steps:
        return f"ends at step {curve['step'].iloc[-1]} of {result.planned_steps}"
    return ""


def _empty_trials() -> pd.DataFrame:
    names = (
        "recipe trial status steps planned_steps value seed train_loss test_loss test_accuracy "
        "validation_loss validation_accuracy seconds stalled zero_steps still_from outcome"
    )
    return pd.DataFrame(columns=names.split())


def _prefixed(frame: pd.DataFrame, prefix: str) -> pd.DataFrame:
    return frame.assign(recipe=prefix + frame["recipe"].astype(str)) if prefix else frame


def _joined(frames: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    full = [frame for frame in frames if len(frame)]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=columns)


def recipe_names(trials: pd.DataFrame, planned: Mapping[str, int]) -> list[str]:
    """Names of the planned recipes, then of others that have trials."""
    return list(dict.fromkeys([*planned, *trials["recipe"]]))


def ranked(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the finished trials; column `value` is the capped objective, as the sampler received it."""
    return trials[trials["status"] != "failed"].astype({"value": float})
