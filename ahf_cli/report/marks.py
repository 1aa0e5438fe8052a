"""Marks that figures share: lines with bands, strips of points, baselines, legends and captions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ahf_cli.report.canvas import Theme
from ahf_cli.report.plotting import Axes, Figure, FigureCanvasAgg
from ahf_cli.report.statistics.trajectory import BANDS, Band
from ahf_cli.report.style import Style
from ahf_cli.tasks.metrics import Column, Metrics
from ahf_cli.training.outcome import OUTCOMES

FEW = 10
"""Fewest trials of a drawn distribution band; with fewer it covers most of the panel."""

LONGEST = 46
"""Most characters of a label along a panel's height."""

FILLED = 3
"""Most recipes of a figure whose bands are filled; more have edges, since fills hide one another."""

_EDGE: Any = {"linewidth": 0.6, "alpha": 0.55, "zorder": 2}

STEP_LABEL = "step (one mini-batch each)"


def grid(figure: Figure, theme: Theme, panels: int, across: int = 2) -> list[Axes]:
    """Return the panels of a figure, side by side within the theme's columns."""
    columns = theme.columns(panels, across)
    rows = -(-panels // columns)
    return [figure.add_subplot(rows, columns, at + 1) for at in range(panels)]


def zoomed(values: ArrayLike, metric: Column) -> tuple[float, float]:
    """Return the limits of a linear axis around some values of a metric, within its bounds and its edge."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known) & (known <= metric.edge)]
    if not known.size:
        return 0.0, min(metric.top, metric.scale) if metric.scale < math.inf else 1.0
    low, high = float(known.min()), float(known.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return max(0.0, low - margin), min(high + margin, metric.edge)


START = 0.25
"""part of each line, from its start, by which a vertical axis is not chosen"""


def settled(lines: pd.DataFrame, x: str = "step", y: str = "centre") -> NDArray[np.float64]:
    """Return the values of each recipe's line after its first quarter, which an axis shows."""
    ends = lines.groupby("recipe")[x].transform("max")
    return np.asarray(lines.loc[lines[x] >= START * ends, y], dtype=float)


START_WORDS = "Vertical axes show the values after the first quarter of each line."


def log_limits(values: ArrayLike, edge: float = math.inf) -> tuple[float, float]:
    """Return the limits of a logarithmic axis around the positive ones of some values, up to an edge."""
    known = np.asarray(values, dtype=float)
    positive = known[np.isfinite(known) & (known > 0)]
    return (positive.min() / 2, min(positive.max() * 2, edge)) if positive.size else (0.1, 1.0)


def line(
    axes: Axes, table: pd.DataFrame, style: Style, label: str | None, x: str = "step", *,
    solid: bool = False, filled: bool = True,
) -> None:  # fmt: skip
    """Draw a centre line with its band, or without one for n = 1; without `filled`, the band has edges."""
    along = table[x].to_numpy(dtype=float)
    low, centre, high = (table[k].to_numpy(dtype=float) for k in ("low", "centre", "high"))
    if filled:
        axes.fill_between(along, low, high, color=style.color, alpha=0.2, linewidth=0, zorder=2)
    else:
        axes.plot(along, np.stack([low, high], axis=1), color=style.color, **_EDGE)
    axes.plot(
        along, centre, color=style.color, linestyle="-" if solid else style.line, linewidth=1.5, label=label,
        marker=None if solid else style.marker, markerfacecolor=style.face,
        markevery=max(1, len(along) // 9), zorder=3,
    )  # fmt: skip


def stairs(
    axes: Axes, table: pd.DataFrame, style: Style, label: str | None, start: float, end: float, *,
    filled: bool = True,
) -> None:  # fmt: skip
    """Draw a distribution with its band, from 0 at `start` to the right edge `end`."""
    value = np.concatenate([[start], table["value"].to_numpy(float), [end]])
    parts = {}
    for name in ("share", "low", "high"):
        known = table[name].to_numpy(float)
        parts[name] = np.concatenate([[0], known, known[-1:] if len(known) else [0]])
    low, high = parts["low"], parts["high"]
    if table["n"].min() >= FEW and filled:
        axes.fill_between(value, low, high, step="post", color=style.color, alpha=0.13, linewidth=0, zorder=2)
    elif table["n"].min() >= FEW:
        both = np.stack([low, high], axis=1)
        axes.plot(value, both, drawstyle="steps-post", color=style.color, **_EDGE)
    axes.plot(
        value, parts["share"], drawstyle="steps-post", color=style.color, linestyle=style.line, linewidth=1.5,
        marker=style.marker, markerfacecolor=style.face, markevery=(1, max(1, len(value) // 7)),
        label=label, zorder=3,
    )  # fmt: skip


def spread(numbers: ArrayLike, width: float = 0.3) -> NDArray[np.float64]:
    """Return offsets in [−width, width] of points, by the golden ratio sequence."""
    return np.asarray((np.asarray(numbers, dtype=float) * 0.6180339887 % 1 - 0.5) * 2 * width)


def baseline(axes: Axes, metric: Column, *, upright: bool = False) -> None:
    """Mark the baseline of a metric by a dotted line with a label beside the panel, if the panel holds it."""
    value = metric.baseline
    low, high = axes.get_xlim() if upright else axes.get_ylim()
    if value is None or not low <= value <= high:
        return
    dotted: Any = {"color": "0.45", "linewidth": 0.8, "linestyle": (0, (1, 3)), "zorder": 1}
    text: Any = {"textcoords": "offset points", "color": "0.35", "annotation_clip": False}
    if upright:
        axes.axvline(value, **dotted)
        axes.annotate(
            "chance", (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), ha="center", va="bottom",
            fontsize=small(axes), **text,
        )  # fmt: skip
    else:
        axes.axhline(value, **dotted)
        axes.annotate(
            "chance", (1, value), xycoords=("axes fraction", "data"), xytext=(3, 0), ha="left", va="center",
            fontsize=small(axes), **text,
        )  # fmt: skip


def small(axes: Axes) -> float:
    """Return the size of tick labels in points, the least size of a text in a panel."""
    return float(axes.xaxis.label.get_fontsize()) - 1


def references(axes: Axes, values: Mapping[str, float]) -> None:
    """Mark published values by dotted lines with their names inside the panel."""
    for name, value in values.items():
        axes.axhline(value, color="0.35", linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        axes.annotate(
            name, (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, 1), ha="left", va="bottom",
            textcoords="offset points", fontsize=small(axes), color="0.35",
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
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for columns in range(min(len(labels), 4), 0, -1):
        found = figure.legend(
            loc="outside upper center", ncols=columns, handlelength=1 if points else 4, columnspacing=1.5
        )
        if columns == 1 or found.get_window_extent(renderer).width <= 0.98 * figure.bbox.width:
            break
        found.remove()


def labelled(metric: Column, theme: Theme) -> str:
    """Return the name and unit of a metric, shortened for a small panel."""
    whole = f"{metric.label} ({metric.unit})"
    return whole if theme.name == "screen" and len(whole) <= LONGEST else metric.named


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
