"""Trials that several studies have in common, by content and not by name or slot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any, Literal

import pandas as pd

from ahf_cli.recipes.structure import Structure
from ahf_cli.report.study_data import StudyData
from ahf_cli.training.environment import same_training

COLUMNS = ["phase", "study_a", "recipe_a", "trial_a", "study_b", "recipe_b", "trial_b", "same", "code"]


def shared_trials(data: StudyData) -> pd.DataFrame:
    """Return the pairs of trials of two studies with equal settings, one row a pair.

    Settings are the structure, all hyperparameters, the training seed, the task and the number of steps.
    Columns are `COLUMNS`.  phase is `search` or `rerun`; recipes have the names of `pool`.  `same`: status,
    steps and all final test and validation values are equal to the last bit.  `code`: the commits of both
    trials train alike.  `same` does not need it: other code may give equal bits, and equal code other bits.

    Args:
        data: several studies, by `pool`; a single study has no pairs.
    """
    sides = [
        _trials(data, label, prefix, manifest)
        for (prefix, _), (label, manifest) in zip(data.sources, data.manifests.items(), strict=True)
    ]
    pairs = [a.merge(b, on=["phase", "settings"], suffixes=("_a", "_b")) for a, b in combinations(sides, 2)]
    if not sum(map(len, pairs)):
        return pd.DataFrame(columns=COLUMNS)
    found = pd.concat(pairs, ignore_index=True)
    found["same"] = found["result_a"] == found["result_b"]
    found["code"] = [_alike(*commits) for commits in zip(found["commit_a"], found["commit_b"], strict=True)]
    return found[COLUMNS]


def _trials(data: StudyData, label: str, prefix: str, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """Return the finished trials of a study: settings and result as text, and the commit."""
    identity, described = manifest.get("identity", {}), data.described
    sessions = sorted(manifest.get("sessions", []), key=lambda s: str(s.get("started", "")))
    rows = []
    for phase, frame in (("search", data.trials), ("rerun", data.reruns)):
        for row in frame[frame["status"] != "failed"].to_dict("records") if len(frame) else []:
            name = str(row["recipe"])
            structure = described.get(name, {}).get("structure")
            if not name.startswith(prefix) or not structure:
                continue
            known = {str(key): value for key, value in row.items() if value == value}
            settings = [
                {k: v for k, v in structure.items() if v != getattr(Structure, k, None)},
                {k: v for k, v in known.items() if k.startswith("params.")},
                row["seed"], identity.get("task"), row["planned_steps"],
            ]  # fmt: skip
            values = {k: v for k, v in known.items() if k.startswith(("test_", "validation_"))}
            rows.append(
                {"phase": phase, "study": label, "recipe": name, "trial": row["trial"]}
                | {"settings": json.dumps(settings, sort_keys=True)}
                | {"result": json.dumps([row["status"], row["steps"], values], sort_keys=True)}
                | {"commit": _commit(sessions, str(row.get("started", "")))}
            )
    columns = ["phase", "study", "recipe", "trial", "settings", "result", "commit"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(["phase", "recipe", "settings"])


def _commit(sessions: Sequence[Mapping[str, Any]], started: str) -> str:
    """Return the commit of the last session that had begun when a trial started; '' if it is not known."""
    begun = [s for s in sessions if str(s.get("started", "")) <= started]
    known = begun and begun[-1].get("commit") and not begun[-1].get("dirty")
    return str(begun[-1]["commit"]) if known else ""


@cache
def _alike(one: str, other: str) -> bool:
    return bool(one and other) and (one == other or same_training(one, other))


def same_reruns(data: StudyData, phase: Literal["search", "rerun"] = "rerun") -> set[frozenset[str]]:
    """Return the pairs of recipes of two studies whose re-runs, or draws of the search, are all the same."""
    found = shared_trials(data)
    again = found[found["same"].astype(bool) & (found["phase"] == phase)]
    if not len(again):
        return set()
    frame = data.reruns if phase == "rerun" else data.trials
    ended = frame[frame["status"] != "failed"]["recipe"].value_counts()
    counts = Counter(zip(again["recipe_a"], again["recipe_b"], strict=True))
    return {frozenset(pair) for pair, n in counts.items() if all(ended[name] == n for name in pair)}


def shared_sentences(data: StudyData) -> list[str]:
    """Return a sentence for each two studies with the same trials, and one for trials that ran anew."""
    said = []
    for (a, b, same), own in shared_trials(data).groupby(["study_a", "study_b", "same"], sort=False):
        one = len(own) == 1
        if same:
            verb, end = ("is", "it counts") if one else ("are", "they count")
            said.append(f"{_counted(own)} {verb} the same in {a} and {b}; {end} once.")
        else:
            verb = "has" if one else "have"
            said.append(f"{_counted(own)} {verb} equal settings and seeds in {a} and {b}, but other results.")
    return said


def _counted(pairs: pd.DataFrame) -> str:
    """Return numbers of trials and re-runs with their recipes, such as `12 trials each of adam, hf`."""
    groups: dict[tuple[int, str], list[str]] = {}
    counts = Counter(zip(pairs["phase"], pairs["recipe_a"], pairs["recipe_b"], strict=True))
    for (phase, *pair), n in counts.items():
        what = "trial" if phase == "search" else "re-run"
        names = dict.fromkeys(name.partition("/")[2] for name in pair)
        groups.setdefault((n, what if n == 1 else f"{what}s"), []).append(" = ".join(names))
    return " and ".join(
        f"{n} {what} {'each ' if len(names) > 1 else ''}of {', '.join(names)}"
        for (n, what), names in groups.items()
    )
