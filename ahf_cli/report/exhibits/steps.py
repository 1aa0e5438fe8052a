"""Cost of a step, and the course of damping, reduction ratio and step size."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.curves import line_frame
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.plotting import Axes, Figure
from ahf_cli.report.style import Style, styles

WINDOWS = 70
"""most windows of steps, and points, of a line"""


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
    """Return the width of a window in steps; 1 if the steps are no more than `WINDOWS`."""
    distinct = np.sort(steps["step"].unique())
    if len(distinct) <= WINDOWS:
        return int(np.diff(distinct).min(initial=distinct[-1])) if len(distinct) > 1 else 1
    return -(-int(distinct[-1] - distinct[0] + 1) // WINDOWS)


def cost(steps: pd.DataFrame, curves: pd.DataFrame, trials: pd.DataFrame, names: list[str]) -> Drawing:
    """Return a drawing of CG iterations and milliseconds a step."""
    table = cost_table(steps, curves, names)
    looks = styles(names)
    caption = [
        f"{_median(steps)} (n at the start: {marks.counts(trials, names)}). Time is training time without "
        "evaluation, averaged between two evaluations; it depends on the machine and on its other load."
    ]
    labels = {"cg_iterations": "CG iterations a step", "milliseconds": "time a step (ms)"}
    if not (table.loc[table["quantity"] == "cg_iterations", "centre"] > 0).any():
        del labels["cg_iterations"]  # no recipe solves by CG

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, len(labels))
        for axes, (quantity, label) in zip(panels, labels.items(), strict=True):
            _lines(axes, table[table["quantity"] == quantity], looks, named=quantity == "milliseconds")
            axes.set(xlabel=marks.STEP_LABEL, ylabel=label)
            axes.set_ylim(bottom=0)
        marks.legend(figure, theme)

    return Drawing("cost", "Cost of a step", table, caption, draw, panels=len(labels))


def damping(steps: pd.DataFrame, trials: pd.DataFrame, names: list[str]) -> Drawing | str:
    """Return a drawing of damping, reduction ratio and step size over the steps."""
    quantities = {
        "damping": r"damping $\lambda$", "reduction_ratio": r"reduction ratio $\rho$",
        "step_size": r"step size $\alpha_t$",
    }  # fmt: skip
    table = step_lines(steps, list(quantities), names)
    if not len(table):
        return "the study has no step records (steps.csv.gz)"
    if not (table.loc[table["quantity"] == "damping", "centre"] > 0).any():
        return "no recipe of the study has a damping"
    looks = styles(names)
    known = set(table.loc[table["centre"].notna(), "quantity"])
    shown = [name for name in names if (table["recipe"] == name).any()]
    ratio = (
        "Dotted lines are ρ = ¼ and ¾; between them the Levenberg-Marquardt rule keeps λ. The panel of ρ is "
        "cut off at −1 and 2. "
    )
    caption = [
        f"{_median(steps)} (n at the start: {marks.counts(trials, shown)}). "
        f"{ratio if 'reduction_ratio' in known else ''}"
        "The step size as used is α or Eq. 3; a step size of 0 is not drawn. The released Adaptive HF has a "
        "constant 0.001."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, len(known), 3)
        drawn = [(quantity, label) for quantity, label in quantities.items() if quantity in known]
        for at, (axes, (quantity, label)) in enumerate(zip(panels, drawn, strict=True)):
            _lines(axes, table[table["quantity"] == quantity], looks, named=at == 0)
            axes.set(xlabel=marks.STEP_LABEL, ylabel=label)
            if quantity == "reduction_ratio":
                for level in (0.25, 0.75):
                    axes.axhline(level, color="0.45", linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
                axes.set_ylim(-1, 2)
            else:
                axes.set_yscale("log", nonpositive="mask")
                axes.minorticks_off()
        marks.legend(figure, theme)

    title = "Damping, reduction ratio and step size"
    return Drawing("damping", title, table, caption, draw, panels=len(known), height=0.9, across=3)


def _lines(axes: Axes, table: pd.DataFrame, looks: dict[str, Style], *, named: bool) -> None:
    drawable = table.replace([np.inf, -np.inf], np.nan)
    drawn = table["recipe"].unique()
    for name in drawn:
        own = drawable[drawable["recipe"] == name]
        marks.line(axes, own, looks[name], name if named else None, filled=len(drawn) <= marks.FILLED)


def _median(steps: pd.DataFrame) -> str:
    width = window(steps) if len(steps) else 1
    within = f", each trial's median within {width} steps" if width > 1 else ""
    return f"Median with the quartiles over the trials that reached a step{within}"


EXHIBIT = Exhibit(
    10,
    figures={
        "cost": lambda d, _: cost(d.steps, d.curves, d.trials, d.recipes),
        "damping": lambda d, _: damping(d.steps, d.trials, d.recipes),
    },
)
