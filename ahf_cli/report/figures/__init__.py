"""Figures, drawn from tables alone; each is saved with the table that it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ahf_cli.recipes.document import sentences
from ahf_cli.report.canvas import Drawing, save
from ahf_cli.report.figures.attribution import attribution
from ahf_cli.report.figures.budget import expected_best
from ahf_cli.report.figures.curves import curves
from ahf_cli.report.figures.finals import distribution, final_values
from ahf_cli.report.figures.prerun import NORMS, prerun_smoothness, prerun_steps
from ahf_cli.report.figures.reruns import reruns
from ahf_cli.report.figures.sensitivity import sensitivity
from ahf_cli.report.figures.spent import equal_cost
from ahf_cli.report.figures.steps import cost, damping
from ahf_cli.report.figures.target import time_to_target
from ahf_cli.report.statistics import Band
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.tables.attribution import attribution_table
from ahf_cli.tasks.metrics import Metrics

__all__ = ["FIGURES", "NORMS", "Choices", "drawings", "figure_2", "prerun_figures"]


@dataclass(frozen=True)
class Choices:
    """What a reader may choose about figures and tables."""

    band: Band = "se"
    target: float | None = None
    """of the headline"""
    attribute: bool = False
    """show what each single choice does"""


def _figure_1(data: StudyData) -> Drawing | str:
    steps, norm = data.prerun
    return prerun_steps(steps, norm) if len(steps) else "the study has no pre-run, or not its steps"


FIGURES: dict[str, Callable[[StudyData, Choices], Drawing | str]] = {
    "prerun_steps": lambda d, c: _figure_1(d),
    "figure2": lambda d, c: curves(d.trials, d.curves, d.planned, c.band, d.metrics, d.explanations),
    "equal_cost": lambda d, c: equal_cost(d.curves, d.recipes, c.band, d.metrics.headline),
    "final_values": lambda d, c: final_values(d.trials, d.recipes, d.metrics),
    "distribution": lambda d, c: distribution(d.trials, d.recipes, d.metrics),
    "expected_best": lambda d, c: expected_best(d.trials, d.recipes, d.minimized, independent=d.independent),
    "time_to_target": lambda d, c: time_to_target(d.curves, d.recipes, c.target, d.metrics.headline),
    "sensitivity": lambda d, c: sensitivity(d.trials, d.recipes, d.minimized, d.metrics),
    "reruns": lambda d, c: reruns(d.trials, d.reruns, d.recipes, d.objective, d.metrics),
    "cost": lambda d, c: cost(d.steps, d.curves, d.trials, d.recipes),
    "damping": lambda d, c: damping(d.steps, d.trials, d.recipes),
}
"""The figures of a comparison by name, in their order; a text says why one cannot be drawn."""


def drawings(data: StudyData, choices: Choices) -> tuple[list[Drawing], dict[str, str]]:
    """Return what can be drawn of a study, and why the rest cannot."""
    made = {name: figure(data, choices) for name, figure in FIGURES.items()}
    if choices.attribute:
        table = attribution_table(data.trials, data.described, data.recipes, data.metrics)
        made = {"attribution": attribution(table.numbers, data.metrics), **made}
    return (
        [found for found in made.values() if isinstance(found, Drawing)],
        {name: found for name, found in made.items() if isinstance(found, str)},
    )


def figure_2(
    trials: pd.DataFrame,
    evaluations: pd.DataFrame,
    planned: Mapping[str, int],
    band: Band,
    metrics: Metrics,
    out: Path,
    explanations: Mapping[str, str] | None = None,
) -> list[Path]:
    """Save the paper's Figure 2: training loss and headline against step, one line per recipe."""
    known = sentences({}) if explanations is None else explanations
    return save(curves(trials, evaluations, planned, band, metrics, known), out)


def prerun_figures(steps: pd.DataFrame, norm: str, out: Path) -> list[Path]:
    """Save the paper's Figure 1 for the pre-run, and the smoothness of Eq. 2 against the size of the update.

    `steps` has the column trial and those of `StepRow`; `norm` is a key of `NORMS`.  Writes under `out`
    figures/prerun_steps.*, figures/prerun_smoothness.* and the tables of the same names in data/.
    """
    return [*save(prerun_steps(steps, norm), out), *save(prerun_smoothness(steps), out)]
