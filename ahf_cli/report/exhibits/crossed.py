"""Variance between draws, between seeds and of retraining, in a study of crossed draws and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ahf_cli.errors import InputError
from ahf_cli.report.exhibits.exhibit import Choices, Exhibit
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.statistics.components import crossed
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import NOTHING, Table, number, spread_interval, within
from ahf_cli.tasks.metrics import Column


def components_table(data: StudyData) -> Table:
    """Standard deviation of each component, one row per metric and recipe, and the mean with its interval.

    The columns are those of `components.crossed`: draw, seed, and interaction and retraining, or rest where
    each cell was trained once.  `_share` is a component's part of the variance.

    Raises:
        InputError: the design is not crossed, or no recipe has a value in every cell.
    """
    if data.design != "crossed":
        seeds = " with one seed for all draws" if data.shared_seed else ""
        raise InputError(
            f"study {data.names[0]} has the design {data.design}{seeds}: variance components need the design "
            "crossed, as in `ahf search --design crossed`"
        )
    rows, absent = [], []
    for name in data.recipes:
        own = data.trials[(data.trials["recipe"] == name) & (data.trials["status"] != "failed")]
        for metric in data.metrics.shown:
            try:
                rows.append({"metric": metric.label, "recipe": name, **_row(own, metric)})
            except ValueError as error:
                absent.append(f"{name}: {error}")
    if not rows:
        raise InputError([f"study {data.names[0]}: {line}" for line in dict.fromkeys(absent)])
    numbers = pd.DataFrame(rows)
    parts = [p for p in ("draw", "seed", "interaction", "retraining", "rest") if p in numbers]
    text = numbers[["metric", "recipe"]].assign(
        table=[f"{r['draws']} × {r['seeds']} × {r['repeats']}" for r in rows],
        **{"mean, 95 %": [within(row, "mean", 3) for row in rows]},
        **{f"SD {part}, 95 %": [within(row, part, 3) for row in rows] for part in parts},
        **{f"share {part}": [_share(row, part) for row in rows] for part in parts},
    )
    note = (
        "Draws × seeds × repeats. The mean's interval holds for new draws and new seeds. A repeat starts "
        "from weights changed in their last digits. Two clusters have no interval."
    )
    left_out = f" Left out: {'; '.join(dict.fromkeys(absent))}." if absent else ""
    return Table("components", numbers, {"Variance components": text}, note + left_out)


def _row(own: pd.DataFrame, metric: Column) -> dict[str, Any]:
    values = at_baseline(own, metric)
    found = crossed(_cube(own, values), _cube(own, (own["outcome"] == "trained").astype(float)) > 0)
    row: dict[str, Any] = {"draws": found.draws, "seeds": found.seeds, "repeats": found.repeats}
    row |= spread_interval("mean", found.mean)
    for name, component in found.components.items():
        row |= spread_interval(name, component.deviation)
        row |= {f"{name}_share": component.share, f"{name}_negative": component.negative}
    return row


def _cube(own: pd.DataFrame, values: pd.Series[float]) -> NDArray[np.float64]:
    """Return values as (draws, seeds[, repeats]); NaN where a cell is not trained yet."""
    keys = [own["extra.draw"].astype(int), own["seed"], own["extra.repeat"].astype(int)]
    sizes = [key.nunique() for key in keys]
    wide = pd.Series(values.to_numpy(float), pd.MultiIndex.from_arrays(keys)).unstack([1, 2])
    order = pd.MultiIndex.from_product([sorted(keys[1].unique()), sorted(keys[2].unique())])
    cube = wide.sort_index().reindex(columns=order).to_numpy(float).reshape(sizes)
    return cube[:, :, 0] if sizes[2] == 1 else cube


def _share(row: dict[str, Any], part: str) -> str:
    return NOTHING if np.isnan(row[f"{part}_share"]) else number(row[f"{part}_share"], 2, fixed=True)


def _table(data: StudyData, choices: Choices) -> Table | None:
    if data.design != "crossed" or not len(data.trials):
        return None
    try:
        return components_table(data)
    except InputError:  # no cell of the last draw is trained yet, in a search that goes on
        return None


EXHIBIT = Exhibit(5, [_table])
