"""What a step costs: CG iterations and time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ahf_cli.report.tables.curves import line_frame

WINDOWS = 70
"""most windows of steps that a line over all steps is drawn from"""


def cost_table(steps: pd.DataFrame, curves: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """CG iterations and milliseconds a step: quantity, recipe, step, n, centre (median), low, high."""
    frames = [step_lines(steps, ["cg_iterations"], names)]
    done = curves[curves["status"] != "failed"].sort_values(["recipe", "trial", "step"])
    passed = done.groupby(["recipe", "trial"])[["step", "seconds"]].diff()
    speed = done.assign(milliseconds=1000 * passed["seconds"] / passed["step"])
    frames.append(step_lines(speed[passed["step"] > 0], ["milliseconds"], names))
    return pd.concat(frames, ignore_index=True)


def step_lines(steps: pd.DataFrame, columns: list[str], names: list[str]) -> pd.DataFrame:
    """Median and quartiles over trials of each trial's median within windows of steps, at most `WINDOWS`.

    Columns: quantity, recipe, step (the window's middle), n, centre, low, high.
    """
    out = ["quantity", "recipe", "step", "n", "centre", "low", "high"]
    if not len(steps):
        return pd.DataFrame(columns=out)
    width = window(steps)
    first = int(steps["step"].min())
    place = (steps["step"] - first) // width
    medians = steps.groupby(["recipe", "trial", place], sort=True)[columns].median()
    middle = steps["step"].groupby(place).agg(lambda s: (s.min() + s.max()) / 2)
    frames = []
    for name in names:
        if name not in medians.index.get_level_values("recipe"):
            continue
        own = medians.loc[name]
        for column in columns:
            wide = own[column].unstack("step")
            head = {"quantity": column, "recipe": name, "step": middle[wide.columns]}
            frames.append(line_frame(head, wide.to_numpy(float), "iqr"))
    return pd.concat(frames, ignore_index=True)


def window(steps: pd.DataFrame) -> int:
    """Return the width of a window in steps: 1 where all distinct steps are few enough to be drawn."""
    distinct = np.sort(steps["step"].unique())
    if len(distinct) <= WINDOWS:
        return int(np.diff(distinct).min(initial=distinct[-1])) if len(distinct) > 1 else 1
    return -(-int(distinct[-1] - distinct[0] + 1) // WINDOWS)
