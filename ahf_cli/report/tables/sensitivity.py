"""How the outcome depends on each hyperparameter."""

from __future__ import annotations

import pandas as pd

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.report.statistics import rank_correlation
from ahf_cli.report.tables.metrics import ranked
from ahf_cli.report.tables.text import Table, number
from ahf_cli.tasks.metrics import Column


def sensitivity_points(trials: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """One row a trial and varying hyperparameter: recipe, trial, status, value, hyperparameter, setting."""
    done = ranked(trials)
    frames = []
    for key in HYPERPARAMETERS:
        column = f"params.{key}"
        for name in names if column in done else []:
            own = done[(done["recipe"] == name) & done[column].notna()]
            if own[column].nunique() > 1:
                points = own[["recipe", "trial", "status", "value"]]
                frames.append(points.assign(hyperparameter=key, setting=own[column].astype(float)))
    columns = ["recipe", "trial", "status", "value", "hyperparameter", "setting"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def sensitivity_table(trials: pd.DataFrame, names: list[str], objective: Column) -> Table:
    """Spearman's rank correlation of each hyperparameter with the loss: negative, larger is better."""
    points = sensitivity_points(trials, names)
    rows = [
        {"recipe": recipe, "hyperparameter": key, "n": len(own)}
        | {"rank_correlation": rank_correlation(own["setting"], own["value"])}
        for (recipe, key), own in points.groupby(["recipe", "hyperparameter"], sort=False)
    ]
    numbers = pd.DataFrame(rows, columns=["recipe", "hyperparameter", "n", "rank_correlation"])
    text = numbers.assign(
        n=numbers["n"].astype(str),
        rank_correlation=numbers["rank_correlation"].map(lambda v: number(v, 2, fixed=True)),
    )
    title = f"Rank correlation of hyperparameter and {objective.label}"
    return Table(
        "sensitivity", numbers, {title: text}, "Over the trials of the search, which a sampler chose."
    )
