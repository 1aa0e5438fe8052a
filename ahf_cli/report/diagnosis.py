"""The diagnosis of a trial from its steps, in words and as one figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics.trajectory import Array
from ahf_cli.tasks.metrics import digits
from ahf_cli.training.records import TrialResult, headline

RUNAWAY = 1e3
"""λ has run away if it ends at this multiple of its lowest value"""
SPIKE = 2.0
"""a batch loss of this multiple of the first one is a spike"""
TINY = 1e-4
"""updates below this share of the direction hardly move the weights"""


@dataclass(frozen=True)
class Diagnosis:
    """The outcome of a trial, and one line for each finding in its steps."""

    outcome: str
    findings: tuple[str, ...]


def diagnose(
    result: TrialResult, steps: pd.DataFrame, outcome: str, max_iterations: int | None = None
) -> Diagnosis:
    """Return the diagnosis of a trial with an outcome; `steps` may be empty."""
    if not len(steps):
        return Diagnosis(
            _outcome(result, outcome),
            ("Its steps are not on disk (steps.csv.gz), so there are no findings.",),
        )
    solves = _solves(steps)
    findings = [
        *_non_finite(result, steps),
        *(_damping(steps) if solves else []),
        *(_reduction_ratio(steps) if solves else []),
        *_step_sizes(result, steps),
        *(_conjugate_gradient(steps, max_iterations) if solves and steps["cg_iterations"].any() else []),
        *_loss(steps),
    ]
    return Diagnosis(_outcome(result, outcome), tuple(findings))


def _solves(steps: pd.DataFrame) -> bool:
    """Return whether the steps solve a linear system; a first-order recipe solves none."""
    return bool(steps["damping"].notna().any())


def _outcome(result: TrialResult, outcome: str) -> str:
    settings = ", ".join(
        f"{HYPERPARAMETERS[key].symbol} = {value:.4g}" if key in HYPERPARAMETERS else f"{key} = {value:.4g}"
        for key, value in result.params.items()
    )
    if result.status == "failed":
        return f"failed: {result.error or 'no reason on record'} ({settings})"
    how = f"{outcome} at step {result.steps} of {result.planned_steps}"
    if result.status == "diverged":
        how += ", and diverged" if outcome == "stood still" else ""
        how += f": {result.error}" if result.error else ""
    else:
        how = f"{outcome} in {result.steps} steps: training loss {digits(result.measured['train_loss'])} and "
        how += headline(result.measured)
    return f"{how} ({settings})"


def _non_finite(result: TrialResult, steps: pd.DataFrame) -> list[str]:
    """Return a line that names the first step with a value that is not finite."""
    columns = ["loss", "direction_l2", "update_l2", "loss_after", "damping", "reduction_ratio"]
    infinite = ~np.isfinite(steps[columns].to_numpy(float))
    rows = np.flatnonzero(infinite[:, :4].any(axis=1))
    if not len(rows):
        if result.status != "diverged":
            return []
        return [
            f"Every recorded value before step {result.steps} is finite; the step itself is not recorded."
        ]
    first = int(rows[0])
    names = [c.replace("_", " ") for c, bad in zip(columns, infinite[first], strict=True) if bad]
    return [f"First value that is not finite: {', '.join(names)} at step {int(steps['step'].iloc[first])}."]


def _damping(steps: pd.DataFrame) -> list[str]:
    values = steps["damping"].to_numpy(float)
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return []
    grew, fell = float(np.mean(np.diff(finite) > 0)), float(np.mean(np.diff(finite) < 0))
    course = f"λ went from {finite[0]:.3g} to {finite[-1]:.3g}, rising at {grew:.0%} of the steps"
    course += f" and falling at {fell:.0%}"
    ratio = finite[-1] / max(finite.min(), 1e-300)
    if ratio >= RUNAWAY and grew > 0.5:
        size = steps["direction_l2"].to_numpy(float)
        size = size[np.isfinite(size)]
        went = "shrank" if len(size) and size[-1] < size[0] else "grew"
        length = f"; the direction {went} from {size[0]:.3g} to {size[-1]:.3g}" if len(size) else ""
        return [f"Damping runaway: {course}{length}."]
    if np.all(finite == finite[0]):
        return [f"λ stayed at {finite[0]:.3g}."]
    return [f"Damping: {course}."]


def _reduction_ratio(steps: pd.DataFrame) -> list[str]:
    ratio = steps["reduction_ratio"].to_numpy(float)
    finite = ratio[np.isfinite(ratio)]
    if not len(finite):
        return ["The reduction ratio was never finite."]
    low, high = float(np.mean(finite < 0.25)), float(np.mean(finite > 0.75))
    text = f"Reduction ratio: median {np.median(finite):.3g}, below ¼ at {low:.0%} of the steps"
    text += f", above ¾ at {high:.0%}"
    lost = len(ratio) - len(finite)
    return [text + (f", not finite at {lost} steps." if lost else ".")]


def _step_sizes(result: TrialResult, steps: pd.DataFrame) -> list[str]:
    lines = []
    if result.zero_steps:
        share = result.zero_steps / max(len(steps), 1)
        lines.append(
            f"Zero steps: at {result.zero_steps} of {len(steps)} steps ({share:.0%}) Eq. 3 was negative, and "
            "the update was 0."
        )
    size = steps["step_size"].to_numpy(float)
    moved = steps["update_l2"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_moved = _median(moved / steps["direction_l2"].to_numpy(float))
    if np.isfinite(size).any():
        lines.append(
            f"Step size: median {_median(size):.3g}; the updates add up to a path of length "
            f"{np.nansum(moved[np.isfinite(moved)]):.3g}."
        )
    if share_moved < TINY:
        lines.append(
            f"The median update has {share_moved:.1g} of the direction's length: the weights hardly move."
        )
    return lines


def _conjugate_gradient(steps: pd.DataFrame, max_iterations: int | None) -> list[str]:
    reasons = steps["stop"].astype(str).value_counts()
    named = [f"{str(k).replace('_', ' ') or 'unknown'} {n / len(steps):.0%}" for k, n in reasons.items()]
    iterations = steps["cg_iterations"].to_numpy(float)
    text = f"CG: {np.mean(iterations):.1f} iterations a step (most {iterations.max():.0f}"
    text += f" of {max_iterations})" if max_iterations else ")"
    return [f"{text}; CG stopped by {', '.join(named)}."]


def _loss(steps: pd.DataFrame) -> list[str]:
    loss = steps["loss"].to_numpy(float)
    finite = np.where(np.isfinite(loss), loss, np.nan)
    if np.isnan(finite).all():
        return []
    worst = int(np.nanargmax(finite))
    if finite[worst] > SPIKE * finite[0]:
        return [
            f"Batch loss: a spike to {finite[worst]:.4g} at step {int(steps['step'].iloc[worst])}, from "
            f"{finite[0]:.4g} at the start."
        ]
    return [f"Batch loss: from {finite[0]:.4g} to {finite[~np.isnan(finite)][-1]:.4g}."]


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def trial_drawing(result: TrialResult, steps: pd.DataFrame, outcome: str) -> Drawing | str:
    """Return a drawing of one trial: loss, damping, reduction ratio, lengths, step size and CG by step."""
    if not len(steps):
        return "its steps are not on disk (steps.csv.gz)"
    name = f"{result.recipe}/{result.slot:03d}"
    if not _solves(steps):
        return _first_order_drawing(result, steps, outcome)
    caption = [
        f"Trial {name}, one value a step: {_outcome(result, outcome)}. Dotted lines are ρ = ¼ and ¾; the "
        "panel of ρ is cut off at −1 and 2. The colours of the last panel are the stop reasons of CG."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 6, 3)
        t = steps["step"]
        single: dict[str, Any] = {"color": "#0072B2", "linewidth": 1.2}
        for axes, (column, label, log) in zip(panels, _PANELS, strict=False):
            values = steps[column].replace([np.inf, -np.inf], np.nan)
            axes.plot(t, values, **single)
            axes.set(ylabel=label, xlabel=marks.STEP_LABEL)
            if log and (values > 0).any():
                axes.set_yscale("log", nonpositive="mask")
        panels[2].set_ylim(-1, 2)
        for level in (0.25, 0.75):
            panels[2].axhline(level, color="0.45", linewidth=0.8, linestyle=(0, (1, 3)))
        panels[3].plot(t, steps["update_l2"], color="#D55E00", linestyle=(0, (4, 1.5)), linewidth=1.2)
        panels[3].set_ylabel(r"$\|\delta\|_2$ (solid), $\|u\|_2$ (dashed)")
        for (reason, own), (color, sign) in zip(steps.groupby("stop"), _STOPS * 2, strict=False):
            panels[5].scatter(
                own["step"], own["cg_iterations"], s=12, color=color, marker=sign, linewidths=0,
                label=str(reason).replace("_", " ") or "unknown",
            )  # fmt: skip
        panels[5].set(ylabel="CG iterations", xlabel=marks.STEP_LABEL)
        panels[5].set_ylim(bottom=0)
        marks.legend(figure, theme, points=True)

    file = f"trial_{result.recipe}_{result.slot:03d}"
    return Drawing(file, f"Trial {name}", steps, caption, draw, panels=6, height=0.75, across=3)


def _first_order_drawing(result: TrialResult, steps: pd.DataFrame, outcome: str) -> Drawing:
    """Return a drawing of a first-order trial: loss, lengths of gradient and update, step size."""
    name = f"{result.recipe}/{result.slot:03d}"

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 3, 3)
        shown = (("loss", _PANELS[0][1]), ("direction_l2", r"$\|g\|_2$ (solid), $\|u\|_2$ (dashed)"))
        for axes, (column, label) in zip(panels, (*shown, ("step_size", _PANELS[4][1])), strict=True):
            values = steps[column].replace([np.inf, -np.inf], np.nan)
            axes.plot(steps["step"], values, color="#0072B2", linewidth=1.2)
            axes.set(ylabel=label, xlabel=marks.STEP_LABEL)
            if (values > 0).any():
                axes.set_yscale("log", nonpositive="mask")
        update = steps["update_l2"].replace([np.inf, -np.inf], np.nan)
        panels[1].plot(steps["step"], update, color="#D55E00", linestyle=(0, (4, 1.5)), linewidth=1.2)

    file = f"trial_{result.recipe}_{result.slot:03d}"
    caption = f"Trial {name}, one value a step: {_outcome(result, outcome)}."
    return Drawing(
        file,
        f"Trial {name}",
        steps,
        [caption],
        draw,
        panels=3,
        height=0.75,
        across=3,
    )


_PANELS = [
    ("loss", "batch loss (nats)", True), ("damping", r"damping $\lambda$", True),
    ("reduction_ratio", r"reduction ratio $\rho$", False), ("direction_l2", r"$\|\delta\|_2$", True),
    ("step_size", r"step size $\alpha_t$", True),
]  # fmt: skip
_STOPS = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v")]
