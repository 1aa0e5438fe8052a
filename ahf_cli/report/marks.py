"""Marks that figures share: lines with bands, strips of points, baselines, legends and captions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ahf_cli.report.canvas import Theme
from ahf_cli.report.plotting import Axes, Figure
from ahf_cli.report.statistics.trajectory import BANDS, Band
from ahf_cli.tasks.metrics import Column, Metrics
from ahf_cli.training.outcome import OUTCOMES

FEW = 10
"""Fewest trials of a drawn distribution band; with fewer it covers most of the panel."""

LONGEST = 46
"""Most characters of a label along a panel's height."""

STEP_LABEL = "step (one mini-batch each)"


def grid(figure: Figure, theme: Theme, panels: int, across: int = 2) -> list[Axes]:
    """Return the panels of a figure, side by side within the theme's columns."""
    columns = theme.columns(panels, across)
    rows = -(-panels // columns)
    return [figure.add_subplot(rows, columns, at + 1) for at in range(panels)]


def value_top(objective: Column) -> float:
    """Return the upper limit of an axis of the capped objective."""
    return float(f"{1.064 * objective.scale:.3g}")


def limits(metric: Column, highest: float) -> tuple[float, float]:
    """Return the limits of an axis: the metric's bounds, or 0 and the largest value up to the edge."""
    if np.isfinite(metric.top):
        return 0.0, metric.top
    top = max(highest, metric.scale if np.isfinite(metric.scale) else 0.0)
    return 0.0, min(top * 1.05, metric.edge) or 1.0


def log_limits(values: ArrayLike, edge: float = math.inf) -> tuple[float, float]:
    """Return the limits of a logarithmic axis around the positive ones of some values, up to an edge."""
    known = np.asarray(values, dtype=float)
    positive = known[np.isfinite(known) & (known > 0)]
    return (positive.min() / 2, min(positive.max() * 2, edge)) if positive.size else (0.1, 1.0)


def line(
    axes: Axes, table: pd.DataFrame, style: Style, label: str | None, x: str = "step", *, solid: bool = False
) -> None:
    """Draw a centre line with its band, or without one for n = 1."""
    along = table[x].to_numpy(dtype=float)
    low, centre, high = (table[k].to_numpy(dtype=float) for k in ("low", "centre", "high"))
    axes.fill_between(along, low, high, color=style.color, alpha=0.2, linewidth=0, zorder=2)
    axes.plot(
        along, centre, color=style.color, linestyle="-" if solid else style.line, linewidth=1.5, label=label,
        marker=None if solid else style.marker, markersize=4, markevery=max(1, len(along) // 9), zorder=3,
    )  # fmt: skip


def stairs(
    axes: Axes, table: pd.DataFrame, style: Style, label: str | None, start: float, end: float
) -> None:
    """Draw a distribution with its band, from 0 at `start` to the right edge `end`."""
    value = np.concatenate([[start], table["value"].to_numpy(float), [end]])
    parts = {}
    for name in ("share", "low", "high"):
        known = table[name].to_numpy(float)
        parts[name] = np.concatenate([[0], known, known[-1:] if len(known) else [0]])
    if table["n"].min() >= FEW:
        axes.fill_between(
            value,
            parts["low"],
            parts["high"],
            step="post",
            color=style.color,
            alpha=0.13,
            linewidth=0,
            zorder=2,
        )
    axes.plot(
        value, parts["share"], drawstyle="steps-post", color=style.color, linestyle=style.line, linewidth=1.5,
        marker=style.marker, markersize=4, markevery=(1, max(1, len(value) // 7)), label=label, zorder=3,
    )  # fmt: skip


def spread(numbers: ArrayLike, width: float = 0.3) -> NDArray[np.float64]:
    """Return offsets in [−width, width] of points, by the golden ratio sequence."""
    return np.asarray((np.asarray(numbers, dtype=float) * 0.6180339887 % 1 - 0.5) * 2 * width)


def baseline(axes: Axes, metric: Column, *, upright: bool = False) -> None:
    """Mark the baseline of a metric by a dotted line with a label beside the panel."""
    value = metric.baseline
    if value is None:
        return
    dotted = {"color": "0.45", "linewidth": 0.8, "linestyle": (0, (1, 3)), "zorder": 1}
    if upright:
        axes.axvline(value, **dotted)  # type: ignore[arg-type]
        axes.annotate(
            "chance", (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), ha="center", va="bottom",
            textcoords="offset points", fontsize="x-small", color="0.35", annotation_clip=False,
        )  # fmt: skip
    else:
        axes.axhline(value, **dotted)  # type: ignore[arg-type]
        axes.annotate(
            "chance", (1, value), xycoords=("axes fraction", "data"), xytext=(3, 0), ha="left", va="center",
            textcoords="offset points", fontsize="x-small", color="0.35", annotation_clip=False,
        )  # fmt: skip


def references(axes: Axes, values: Mapping[str, float]) -> None:
    """Mark published values by dotted lines with their names inside the panel."""
    for name, value in values.items():
        axes.axhline(value, color="0.35", linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        axes.annotate(
            name, (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, 1), ha="left", va="bottom",
            textcoords="offset points", fontsize="x-small", color="0.35",
        )  # fmt: skip


def reference_words(values: Mapping[str, float]) -> str:
    """Return a sentence on published values; "" for none."""
    said = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    return f" Dotted lines are published values: {said}." if said else ""


def legend(figure: Figure, theme: Theme, *, points: bool = False) -> None:
    """Put one legend above all panels, in as many columns as fit; `points` are markers without a line."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    if not labels:
        return
    room = figure.get_figwidth() * 135 / theme.font  # characters
    columns = max(1, min(len(labels), 4, int(room // (max(map(len, labels)) + (4 if points else 9)))))
    figure.legend(loc="outside upper center", ncols=columns, handlelength=1 if points else 3.5)


def labelled(metric: Column, theme: Theme) -> str:
    """Return the name and unit of a metric, shortened for a small panel."""
    whole = f"{metric.label} ({metric.unit})"
    return whole if theme.caption and len(whole) <= LONGEST else metric.named


def n_of(trials: pd.DataFrame, planned: int) -> str:
    """Return the number of finished trials as text, and the planned number where they differ."""
    n = int((trials["status"] != "failed").sum())
    return f"n = {n}" if n == planned else f"n = {n} of {planned}"


def cut_words(values: pd.DataFrame, metric: Column, names: Iterable[str]) -> str:
    """Return a sentence on final losses beyond the edge of the panel: recipes, counts, largest value."""
    beyond = {name: own for name in names if len(own := _beyond(values, metric, name))}
    said = [f"{name} {len(own)} (to {own.max():.3g})" for name, own in beyond.items()]
    return f" Trials beyond the loss panel's edge at {metric.edge:.3g}: {', '.join(said)}." if said else ""


def _beyond(values: pd.DataFrame, metric: Column, name: str) -> NDArray[np.float64]:
    own = values[values["recipe"] == name][metric.column].to_numpy(float)
    return np.asarray(own[own > metric.edge])


def counts(trials: pd.DataFrame, names: Iterable[str]) -> str:
    """Return the numbers of finished trials as text, such as `hf 70, adaptive_hf 70`."""
    done = trials[trials["status"] != "failed"]["recipe"].value_counts()
    return ", ".join(f"{name} {done.get(name, 0)}" for name in names)


def band_words(band: Band, alone: bool) -> str:
    """Return the name of a band as the start of a sentence."""
    words = BANDS[band][0].upper() + BANDS[band][1:]
    return f"One trial without a band, since {BANDS[band]} needs two" if alone else words


def diverged_words(trials: pd.DataFrame, metrics: Metrics) -> str:
    """Return a sentence on the treatment of diverged trials and capped losses, or '' without such trials."""
    loss = metrics.loss
    worse = metrics.guessing and loss.column in trials and (trials[loss.column] > loss.baseline).any()
    if not worse and not (trials["status"] == "diverged").any():
        return ""
    if not metrics.guessing:
        return " Diverged trials are drawn up to their last finite value, and have no final value."
    level = f"loss {metrics.loss.baseline:.3f}"
    level += "".join(f", {m.label} {m.baseline:.3g}" for m in metrics.all[1:])
    return f" Diverged trials, and values worse than chance, count as chance ({level})."


def cap_words(metrics: Metrics) -> str:
    """Return the cap of the objective as text: `ln 10` for cross-entropy with ten equally likely classes."""
    cap = metrics.loss.baseline
    if cap is None:
        return "its first value"
    classes = round(math.exp(min(cap, 20.0)))
    return f"ln {classes}" if math.isclose(cap, math.log(max(classes, 1))) else f"{cap:.3g}"


def capped_words(metrics: Metrics) -> str:
    """Return a sentence on the cap of values."""
    known = [f"{m.label} {m.baseline:.3g}" for m in metrics.all if m.baseline is not None]
    return f"A value worse than guessing counts as guessing ({', '.join(known)})." if known else ""


def outcome_words(trials: pd.DataFrame, metrics: Metrics) -> str:
    """Return the definitions of the outcomes, or '' if all trials have trained."""
    found = set(trials["outcome"]) if len(trials) else set()
    if not found & {"stood still", "did not train"}:
        return ""
    head = metrics.headline
    bar = "its training loss fell by 5 %"
    if head.bar is not None:
        bar = f"its final {head.label} is {'≥' if head.better == 'higher' else '≤'} {head.bar:g}"
    still = " It stood still if its updates fell below rounding before." if "stood still" in found else ""
    return f" A trial trained if {bar}.{still}"


@dataclass(frozen=True)
class Style:
    """Colour, dashes and marker of a recipe; each of them alone distinguishes recipes."""

    color: str
    line: str | tuple[float, tuple[float, ...]]
    marker: str


# Okabe and Ito's palette without its yellow, a grey, and Tol's wine: distinct in common colour blindness.
_COLORS = ("#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#666666", "#882255")
_LINES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0, (6, 2)),
    (0, (6, 2, 1.5, 2)),
    (0, (1.5, 1.5)),
    (0, (10, 3)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
    (0, (8, 2, 1, 2, 1, 2)),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "p", "<", ">", "*", "h")  # no cross: it marks a divergence
_ORDER = (
    "hf", "adaptive_hf", "hf_published", "adaptive_hf_published", "adam", "sgd_momentum", "hf_stable",
    "adaptive_hf_stable", "adahessian", "hf_martens", "natural_gradient", "nesterov", "rmsprop", "adagrad",
    "adamw", "nadam", "muon", "kfac", "ekfac", "hf_nystrom", "hf_kfac", "hf_spring", "lm", "lm_geodesic",
    "lbfgs",
)  # fmt: skip
_FIXED = {name: index for index, name in enumerate(_ORDER)}
_RESERVED = 4
"""Styles of the paper's four recipes, which no derived recipe takes."""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return the style of each recipe: fixed for built-in recipes, the next free one for others, by name.

    Among `study/recipe` names of one built-in recipe, only the first has the fixed style.
    """
    names = list(dict.fromkeys(names))
    taken: dict[str, int] = {}
    for name in names:
        index = _FIXED.get(name.rpartition("/")[2])
        if index is not None and index not in taken.values():
            taken[name] = index
    free = (i for i in range(_RESERVED, len(_FIXED) + len(names) + 1) if i not in taken.values())
    for name in sorted(names):
        if name not in taken:
            taken[name] = next(free)
    return {name: _style(taken[name]) for name in names}


def _style(index: int) -> Style:
    lap = index // len(_COLORS)  # after the last colour, the colours repeat with other dashes
    return Style(
        _COLORS[index % len(_COLORS)], _LINES[(index + lap) % len(_LINES)], _MARKERS[index % len(_MARKERS)]
    )


def observed(trials: pd.DataFrame) -> str:
    """Return the outcomes of one recipe's finished trials as a sentence."""
    done = trials[trials["status"] != "failed"]
    n = len(done)
    if n == 0:
        return "No trial is finished."
    counts = done["outcome"].value_counts()
    what = [f"{counts[word]} {word}" for word in OUTCOMES if counts.get(word, 0)]
    if len(what) == 1:
        return f"{'All ' if n > 1 else ''}{what[0]}."
    return f"Of {n} trials, {', '.join(what)}."
