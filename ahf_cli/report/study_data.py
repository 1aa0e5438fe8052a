"""A study as tidy tables: what every figure, table and report is made from.

from ahf_cli.report.study_data import load_study

study = load_study("results/quick")
study.trials.groupby("recipe")["test_accuracy"].describe()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.errors import InputError
from ahf_cli.experiment.records import Chance, CurveRow, StepRow, chance_of_task
from ahf_cli.hyperparameters import nearest
from ahf_cli.report.style import explanations
from ahf_cli.report.tables.target import with_work
from ahf_cli.study.store import Reruns, Study, curves_frame, steps_frame, study_names, trials_frame

INDEPENDENT = {"random", "qmc"}
"""Samplers whose trials do not depend on each other."""
_CURVE_COLUMNS = [f.name for f in fields(CurveRow)]
_STEP_COLUMNS = [f.name for f in fields(StepRow)]


@dataclass(frozen=True)
class StudyData:
    """The finished trials of a study, or of several, as pandas tables.

    Recipes of several studies are named `label/recipe`.
    """

    names: tuple[str, ...]
    folder: Path
    """of the first study"""
    manifests: Mapping[str, Mapping[str, Any]]
    """`manifest.json` by study label"""
    planned: Mapping[str, int]
    """trials that each recipe is to have"""
    trials: pd.DataFrame
    """one row a trial: recipe, trial (its slot), status, …, `params.*`, `extra.*`, as in `TrialResult`"""
    curves: pd.DataFrame
    """one row a trial and evaluation: recipe, trial, status, the fields of `CurveRow` and their `work`"""
    reruns: pd.DataFrame
    """as `trials`, of the best configuration with new seeds; `trial` is the replicate"""
    rerun_curves: pd.DataFrame
    reruns_planned: Mapping[str, int]
    problems: tuple[str, ...]
    """what was found wrong with the files, one line each"""
    sources: tuple[tuple[str, Study], ...]
    """label prefix and study"""

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row a trial and step: recipe, trial, status and the fields of `StepRow`; read on demand."""
        frames = [
            _prefixed(steps_frame(study, recipe), prefix)
            for prefix, study in self.sources
            for recipe in study.recipes()
        ]
        return _joined(frames, ["recipe", "trial", "status", *_STEP_COLUMNS])

    @cached_property
    def prerun(self) -> tuple[pd.DataFrame, str]:
        """Steps of the first study's pre-run, and the norm in its step size; no rows where it has none."""
        study = self.sources[0][1].prerun
        names = study.recipes()
        if not names:
            return pd.DataFrame(columns=["trial", *_STEP_COLUMNS]), "l2"
        described = study.manifest().get("identity", {}).get("recipes", {}).get(names[0], {})
        return steps_frame(study, names[0]), str(described.get("structure", {}).get("norm", "l2"))

    @property
    def recipes(self) -> list[str]:
        """Names of the planned recipes, then of others that have trials."""
        return list(dict.fromkeys([*self.planned, *self.trials["recipe"]]))

    @property
    def identity(self) -> Mapping[str, Any]:
        """What defines the first study: seed, task, train, search, recipes, spaces."""
        return dict(next(iter(self.manifests.values())).get("identity", {}))

    @property
    def chance(self) -> Chance:
        """What guessing gives in the first study's task; studies of other tasks get no verdict beside it."""
        task = self.identity.get("task")
        return chance_of_task(task if isinstance(task, Mapping) else {})

    @property
    def design(self) -> str:
        """`fair` where all studies are, else `paper`."""
        found = {
            m.get("identity", {}).get("search", {}).get("design", "paper") for m in self.manifests.values()
        }
        return "fair" if found == {"fair"} else "paper"

    @property
    def independent(self) -> bool:
        """True where no trial was chosen by the results of others: random and quasi-random samplers."""
        searches = [m.get("identity", {}).get("search", {}) for m in self.manifests.values()]
        found = {str(s.get("sampler", "tpe")).lower().removesuffix("sampler") for s in searches}
        return found <= INDEPENDENT

    @property
    def objective(self) -> str:
        """What the search minimized."""
        return str(self.identity.get("search", {}).get("objective", "train_loss"))

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """Structure and fixed hyperparameters of each recipe."""
        return {
            prefix + name: dict(found)
            for (prefix, _), manifest in zip(self.sources, self.manifests.values(), strict=True)
            for name, found in manifest.get("identity", {}).get("recipes", {}).items()
        }

    @property
    def explanations(self) -> dict[str, str]:
        """What each recipe is, in a sentence."""
        said: dict[str, str] = {}
        for (prefix, _), manifest in zip(self.sources, self.manifests.values(), strict=True):
            said |= {prefix + k: v for k, v in explanations(manifest.get("identity", {})).items()}
        return said

    @property
    def _hopeless(self) -> set[str]:
        """Recipes of which all trials are done and have diverged: there is none to run again."""
        ended = self.trials[self.trials["status"] != "failed"]
        ok = set(ended[ended["status"] == "ok"]["recipe"])
        counts = ended["recipe"].value_counts()
        return {k for k, n in self.planned.items() if counts.get(k, 0) >= n and k not in ok}

    @property
    def missing(self) -> list[str]:
        """Say of each recipe that has fewer trials or re-runs than planned how many it has."""
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


def load_study(path: str | Path) -> StudyData:
    """Read the study in a folder, such as `results/quick`, as far as it has come.

    Raises InputError, naming the nearest study there is, where the folder holds none.
    """
    folder = Path(path).absolute()
    study = Study(folder.parent, folder.name)
    if not study.exists():
        known = study_names(folder.parent)
        hint = nearest(folder.name, known) if known else "; it has none"
        raise InputError(f"no study {folder.name!r} in {Path(path).parent}{hint}")
    return read_study(study)


def read_study(study: Study) -> StudyData:
    """Read a study as far as it has come."""
    manifest = study.manifest()
    trials, curves, problems = _read(study, "trial")
    reruns, rerun_curves, more = _read(Reruns(study.results, study.name), "re-run")
    return StudyData(
        (study.name,), study.folder, {study.name: manifest}, dict(manifest.get("plan", {})), trials, curves,
        reruns, rerun_curves, dict(manifest.get("rerun_plan", {})), tuple(problems + more), (("", study),),
    )  # fmt: skip


def pool(studies: Mapping[str, StudyData]) -> StudyData:
    """Put studies side by side under their labels; a single one is returned as it is."""
    if len(studies) == 1:
        return next(iter(studies.values()))

    def joined(name: str) -> pd.DataFrame:
        frames = [_prefixed(getattr(data, name), f"{label}/") for label, data in studies.items()]
        return _joined(frames, list(frames[0].columns))

    def plans(name: str) -> dict[str, int]:
        return {f"{label}/{k}": n for label, data in studies.items() for k, n in getattr(data, name).items()}

    first = next(iter(studies.values()))
    return StudyData(
        tuple(studies), first.folder, {k: m for k, d in studies.items() for m in d.manifests.values()},
        plans("planned"), joined("trials"), joined("curves"), joined("reruns"), joined("rerun_curves"),
        plans("reruns_planned"), tuple(f"{k}: {p}" for k, d in studies.items() for p in d.problems),
        tuple((f"{label}/", study) for label, data in studies.items() for _, study in data.sources),
    )  # fmt: skip


def _read(study: Study, what: str) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    trials, curves = trials_frame(study), curves_frame(study)
    if not len(trials):
        return _empty_trials(), curves, []
    problems = []
    for column in _CURVE_COLUMNS:
        if column not in curves:
            curves[column] = np.nan
    curves = with_work(curves)
    results = {(row["recipe"], row["trial"]): row for row in trials.to_dict("records")}
    read = {key: own for key, own in curves.groupby(["recipe", "trial"], sort=False) if key in results}
    for (recipe, number), result in results.items():
        fault = _fault(read[recipe, number], result) if (recipe, number) in read else "has no rows"
        problems += [f"{what} {recipe}/{number:03d}: curve.csv {fault}"] if fault else []
    return trials, curves, problems


def _fault(curve: pd.DataFrame, result: Mapping[Any, Any]) -> str:
    """Say what is wrong with a trial's curve, or nothing."""
    ended = result["status"] == "ok"
    if ended and curve[["train_loss", "test_accuracy"]].isna().any(axis=None):
        lacks = [c for c in ("train_loss", "test_accuracy") if curve[c].isna().all()]
        return f"lacks {', '.join(lacks)}" if lacks else "has values that are missing or not finite"
    if not curve["step"].is_monotonic_increasing or curve["step"].duplicated().any():
        return "has steps out of order"
    if ended and curve["step"].iloc[-1] < result["planned_steps"]:
        return f"ends at step {curve['step'].iloc[-1]} of {result['planned_steps']}"
    return ""


def _empty_trials() -> pd.DataFrame:
    names = [
        "recipe",
        "trial",
        "status",
        "steps",
        "planned_steps",
        "value",
        "seed",
        "train_loss",
        "test_loss",
    ]
    names += ["test_accuracy", "validation_loss", "validation_accuracy", "seconds", "stalled", "zero_steps"]
    return pd.DataFrame(columns=names)


def _prefixed(frame: pd.DataFrame, prefix: str) -> pd.DataFrame:
    return frame.assign(recipe=prefix + frame["recipe"].astype(str)) if prefix else frame


def _joined(frames: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    full = [frame for frame in frames if len(frame)]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=columns)
