"""The paper's Figure 1, norm of the direction and step size of the pre-run, and its smoothness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme, save
from ahf_cli.report.exhibits.curves import step_table
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.plotting import Axes, Figure
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.style import styles

NORMS = {
    "l2": ("direction_l2", r"$\|g_t\|_2$"),
    "l1": ("direction_l1", r"$\|g_t\|_1$"),
    "sum_l2": ("direction_sum_l2", r"$\sum_l \|g_{t,l}\|_2$"),
}
"""Norms of the direction, which the paper names g: column and symbol."""


def scale(axes: Axes, centre: pd.Series[float], high: pd.Series[float]) -> None:
    """Scale an axis of means and upper ends: logarithmic if positive means differ fiftyfold, else from 0."""
    positive = centre[centre > 0]
    if len(positive) and positive.max() > 50 * positive.min():
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(positive.min() / 2, max(centre.max(), high.max()) * 1.5)
    else:
        axes.set_ylim(bottom=0)


def prerun_steps(steps: pd.DataFrame, norm: str) -> Drawing:
    """Return a drawing of ‖g_t‖ and step size, mean ± SE over trials; `norm` is a key of `NORMS`."""
    column, symbol = NORMS[norm]
    table = step_table(steps, [column, "step_size"], "se")
    n = steps["trial"].nunique()
    fewer = (
        " at the start, fewer after trials have ended (column n of the table)" if table["n"].min() < n else ""
    )
    caption = [
        f"{marks.band_words('se', n == 1)}, n = {n}{fewer}. The first panel shows the norm of the CG "
        "direction g_t, the second panel the step size as used, which is 0 if Eq. 3 is negative."
    ]
    labels = {column: f"norm of the direction {symbol}", "step_size": r"step size $\alpha_t$"}

    def draw(figure: Figure, theme: Theme) -> None:
        for axes, (quantity, label) in zip(marks.grid(figure, theme, 2), labels.items(), strict=True):
            own = table[table["quantity"] == quantity]
            marks.line(axes, own, styles(["adaptive_hf"])["adaptive_hf"], None, solid=True)
            axes.set(xlabel=marks.STEP_LABEL, ylabel=f"{label} (dimensionless)")
            scale(axes, own["centre"], own["high"])

    return Drawing("prerun_steps", "Direction and step size in the pre-run", table, caption, draw, panels=2)


def prerun_smoothness(steps: pd.DataFrame) -> Drawing:
    """Return a drawing of the smoothness of Eq. 2 against the length of the update, one point a step."""
    columns = {
        "smoothness_gradient": (r"$g = \nabla h$", "#0072B2", "o"),
        "smoothness_direction": (r"$g = -\delta$ (the proof's sign)", "#D55E00", "^"),
    }
    table = steps[["trial", "step", "update_l2", *columns]]
    caption = [
        f"Conjugate smoothness of Eq. 2 along each update, n = {steps['trial'].nunique()} trials, one point "
        "a step. g is the gradient of the batch loss, or −δ with the CG direction δ. The axis is "
        "linear between −1 and 1 (grey) and logarithmic beyond."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for column, (label, color, marker) in columns.items():
            keep = table[np.isfinite(table[column]) & (table["update_l2"] > 0)]
            negative = int((keep[column] < 0).sum())
            axes.scatter(
                keep["update_l2"], keep[column], s=7, marker=marker, color=color, alpha=0.35, linewidths=0,
                rasterized=True, label=f"{label}: {len(keep) - negative} positive, {negative} negative",
            )  # fmt: skip
        axes.axhspan(-1, 1, color="0.92", zorder=0)
        axes.axhline(0, color="0.45", linewidth=0.8)
        axes.set_yscale("symlog", linthresh=1)
        if (table["update_l2"] > 0).any():
            axes.set_xscale("log")
        axes.set(
            xlabel=r"length of the update $\|y - x\|_2$ (dimensionless)",
            ylabel=r"smoothness $\hat{L}$ (loss per squared length)",
        )
        found = figure.legend(loc="outside upper center", ncols=1, markerscale=2)
        for handle in found.legend_handles:
            if handle is not None:
                handle.set_alpha(1)

    return Drawing(
        "prerun_smoothness", "Smoothness of Eq. 2 in the pre-run", table, caption, draw, height=1.2
    )


def prerun_figures(steps: pd.DataFrame, norm: str, out: Path) -> list[Path]:
    """Save the paper's Figure 1 of the pre-run and the figure of its smoothness, and return the paths.

    `steps` has the column trial and the columns of `StepRow`; `norm` is a key of `NORMS`.  Files under `out`
    are figures/prerun_steps.*, figures/prerun_smoothness.* and the tables of the same names in data/.
    """
    return [*save(prerun_steps(steps, norm), out), *save(prerun_smoothness(steps), out)]


def _figure(data: StudyData) -> Drawing | str:
    steps, norm = data.prerun
    return prerun_steps(steps, norm) if len(steps) else "the study has no pre-run with steps"


EXHIBIT = Exhibit(1, figures={"prerun_steps": lambda data, _: _figure(data)})
