"""Conditions of trials, and the differences of conditions that forbid a verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import pandas as pd

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Range
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import WHOLE, choices_of
from ahf_cli.report.study_data import StudyData
from ahf_cli.training.environment import same_training


def differences(data: StudyData) -> list[str]:
    """Return one line a difference that forbids a verdict, in N, spaces, task, versions or code."""
    return [
        *_numbers(data),
        *_spaces(data),
        *_settings(data),
        *_seeds(data),
        *_repeated(data),
        *code(data.manifests.values()),
    ]


def conditions(data: StudyData) -> str:
    """Return the conditions of the numbers as two clauses: design, N, steps, objective; the task."""
    identity = data.identity
    search, task, train = (identity.get(key, {}) for key in ("search", "task", "train"))
    n = sorted({int((data.trials["recipe"] == name).sum()) for name in data.recipes})
    trials = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    samplers = {"tpe": "Bayesian (TPE)", "random": "random", "qmc": "Sobol'", "gp": "Bayesian (GP)"}
    sampler = samplers.get(search.get("sampler", ""), search.get("sampler", "unknown"))
    objective = data.objective.replace("_", " ")
    return (
        f"design {data.design}, {trials} {sampler} trials a recipe of {length_of(train)}, objective "
        f"{objective}. Task: {task.get('model', 'unknown model')} on {task.get('data', 'unknown data')}, "
        f"split {task.get('split', '?')}, batch {task.get('batch_size', '?')}"
    )


def length_of(train: Mapping[str, Any]) -> str:
    """Return the length of trials in words, from the section `train` of an identity."""
    steps = f"{train['steps']} steps" if train.get("steps") else f"{train.get('epochs', '?')} epochs"
    longer = ", ".join(f"{name} {times} times" for name, times in train.get("longer", {}).items())
    return f"{steps} ({longer} as many)" if longer else steps


def _numbers(data: StudyData) -> list[str]:
    done = data.trials[data.trials["status"] != "failed"]["recipe"].value_counts()
    counts = {name: int(done.get(name, 0)) for name in data.recipes}
    if len(set(counts.values())) <= 1:
        return []
    return [f"trials differ: {', '.join(f'{name} {n}' for name, n in counts.items())}"]


def _spaces(data: StudyData) -> list[str]:
    """Compare the ranges of each hyperparameter between the recipes that declare the same range for it.

    The step sizes of two Hessian-free recipes may have different declared ranges.  A whole optimizer is
    compared with itself alone: a learning rate of Adam means another step than one of Muon.
    """
    ranges: dict[tuple[str, Range | str | None], dict[str, str]] = {}
    for prefix, identity in data.identities:
        for recipe, space in identity.get("spaces", {}).items():
            for key, found in space.items():
                declared = _declared(identity.get("recipes", {}).get(recipe, {}), key)
                ranges.setdefault((key, declared), {})[prefix + recipe] = _range(found)
    return [
        f"the range of {key} differs: {', '.join(f'{name} {said}' for name, said in found.items())}"
        for (key, _), found in ranges.items()
        if len(set(found.values())) > 1
    ]


def _declared(described: Mapping[str, Any], key: str) -> Range | str | None:
    """Return the name of a whole optimizer; else the range of the most similar built-in recipe."""
    structure = described.get("structure", {})
    if whole := [structure[slot] for slot in WHOLE if slot in structure]:
        return str(whole[0])

    def alike(recipe: Recipe) -> int:
        own = choices_of(recipe.structure)
        return sum(own.get(name) == value for name, value in structure.items())

    nearest = max(RECIPES.values(), key=alike)
    h = HYPERPARAMETERS.get(key)
    return nearest.ranges.get(key) or (h.search if h else None)


def _range(found: Mapping[str, Any]) -> str:
    return f"[{found.get('low'):g}, {found.get('high'):g}]{' log' if found.get('log') else ''}"


def _settings(data: StudyData) -> list[str]:
    """Compare task, training, design and seed between studies."""
    lines = []
    for key in ("seed", "task", "train", "search"):
        said = {
            name: json.dumps(m.get("identity", {}).get(key), sort_keys=True)
            for name, m in data.manifests.items()
        }
        if len(set(said.values())) > 1:
            lines.append(f"{key} differs: {'; '.join(f'{name} {value}' for name, value in said.items())}")
    return lines


def _seeds(data: StudyData) -> list[str]:
    """Compare the training seeds of the recipes, draw by draw and re-run by re-run."""
    lines = []
    for frame, what in ((data.trials, "draws"), (data.reruns, "re-runs")):
        done = frame[frame["status"] != "failed"]
        seeds = {
            name: frozenset(zip(own["trial"], own["seed"], strict=True)) for name, own in _by_recipe(done)
        }
        if not seeds:
            continue
        both = frozenset(t for t, _ in frozenset.intersection(*_slots(seeds)))
        alike = {name: {(t, s) for t, s in own if t in both} for name, own in seeds.items()}
        first = next(iter(alike.values()))
        other = [name for name, own in alike.items() if own != first]
        if other:
            lines.append(f"training seeds of the {what} differ: {next(iter(alike))} and {', '.join(other)}")
    return lines


def _slots(seeds: Mapping[str, frozenset[tuple[int, int]]]) -> list[frozenset[tuple[int, int]]]:
    return [frozenset((slot, 0) for slot, _ in own) for own in seeds.values()]


def _repeated(data: StudyData) -> list[str]:
    """Find re-runs of a trial that is not the best of its recipe."""
    key = "extra.search_slot"
    if not len(data.reruns) or key not in data.reruns:
        return []
    best = data.best["trial"]
    lines = []
    for name, own in _by_recipe(data.reruns):
        slots = sorted({int(slot) for slot in own[key].dropna()})
        if name in best.index and slots != [int(best[name])]:
            said = ", ".join(map(str, slots))
            lines.append(f"re-runs of {name} repeat trial {said}, and the best trial is {best[name]}")
    return lines


def _by_recipe(frame: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    return ((str(name), own) for name, own in frame.groupby("recipe", sort=False))


def code(manifests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Compare package versions, the code that trains and its numerical path between all sessions of studies.

    Commits with equal training code count as one: a study may grow after a change of a figure.
    """
    sessions = [s for m in manifests for s in m.get("sessions", [])]
    lines = []
    commits = _distinct(str(s["commit"]) for s in sessions if s.get("commit"))
    alike = all(same_training(one, other) for one, other in pairwise(commits))
    if len(commits) > 1 and (not alike or any(s.get("dirty") for s in sessions)):
        lines.append(f"commits differ: {', '.join(commit[:10] for commit in commits)}")
    for package in _distinct(name for s in sessions for name in s.get("versions", {})):
        versions = _distinct(s["versions"][package] for s in sessions if package in s.get("versions", {}))
        if len(versions) > 1:
            lines.append(f"versions of {package} differ: {', '.join(versions)}")
    paths = _distinct(s.get("numerics", "pytorch") for s in sessions)
    if len(paths) > 1:
        lines.append(f"numerical paths differ: {', '.join(paths)}")
    return lines


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
