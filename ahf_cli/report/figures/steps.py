"""F8 and F9: what steps cost, and how damping, reduction ratio and step size go."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Axes, Figure
from ahf_cli.report.style import Style, styles
from ahf_cli.report.tables.cost import cost_table, step_lines, window


def cost(steps: pd.DataFrame, curves: pd.DataFrame, trials: pd.DataFrame, names: list[str]) -> Drawing:
    """Draw CG iterations and milliseconds a step."""
    table = cost_table(steps, curves, names)
    looks = styles(names)
    caption = [
        f"{_median(steps)} (n at the start: {marks.counts(trials, names)}). Time is training time without "
        "evaluation, averaged between two evaluations; it depends on the machine and on what ran beside."
    ]
    labels = {"cg_iterations": "CG iterations a step", "milliseconds": "time a step (ms)"}

    def draw(figure: Figure, theme: Theme) -> None:
        for axes, (quantity, label) in zip(marks.grid(figure, theme, 2), labels.items(), strict=True):
            _lines(axes, table[table["quantity"] == quantity], looks, named=quantity == "milliseconds")
            axes.set(xlabel=marks.STEP_LABEL, ylabel=label)
            axes.set_ylim(bottom=0)
        marks.legend(figure, theme)

    return Drawing("cost", "Cost of a step", table, caption, draw, panels=2)


def damping(steps: pd.DataFrame, trials: pd.DataFrame, names: list[str]) -> Drawing | str:
    """Draw damping, reduction ratio and step size over the steps."""
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
    caption = [
        f"{_median(steps)} (n at the start: {marks.counts(trials, names)}). Dotted: ρ = ¼ and ¾, between "
        "which the Levenberg-Marquardt rule keeps λ; its panel is cut off at −1 and 2. Step size as used: "
        "α, or Eq. 3, where it is 0 not drawn; the learning rate 0.001 of the released Adaptive HF."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 3, 3)
        for at, (axes, (quantity, label)) in enumerate(zip(panels, quantities.items(), strict=True)):
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

    return Drawing(
        "damping",
        "Damping, reduction ratio and step size",
        table,
        caption,
        draw,
        panels=3,
        height=0.9,
        across=3,
    )


def _lines(axes: Axes, table: pd.DataFrame, looks: dict[str, Style], *, named: bool) -> None:
    drawable = table.replace([np.inf, -np.inf], np.nan)
    for name in table["recipe"].unique():
        marks.line(axes, drawable[drawable["recipe"] == name], looks[name], name if named else None)


def _median(steps: pd.DataFrame) -> str:
    width = window(steps) if len(steps) else 1
    within = f", each trial's median within {width} steps" if width > 1 else ""
    return f"Median with the quartiles over the trials that went so far{within}"
