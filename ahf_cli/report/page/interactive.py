"""Interactive figures of the page, drawn with Bokeh: zoom, and a switch for each recipe and trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, HoverTool, Range1d
from bokeh.models.annotations import Legend, LegendItem
from bokeh.plotting import figure

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.report.exhibits.curves import curve_table, has_median, with_medians
from ahf_cli.report.exhibits.sensitivity import on_log_axis, sensitivity_points
from ahf_cli.report.marks import Style, limits, log_limits, spread, styles, value_top
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.statistics.trajectory import Band
from ahf_cli.report.study_data import StudyData
from ahf_cli.tasks.metrics import Column, Metrics, digits

POINTS = 120
"""most drawn steps of a trial"""
TOOLTIPS = [
    ("trial", "@name"),
    ("outcome", "@outcome"),
    ("hyperparameters", "@settings"),
    ("value", "$snap_y"),
]
_TOOLS = "pan,box_zoom,wheel_zoom,reset,save"
_MARKERS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "inverted_triangle",
            "P": "plus", "p": "square_pin", "<": "circle_dot", ">": "square_dot", "*": "star",
            "h": "hex"}  # fmt: skip


def figures(data: StudyData, band: Band) -> dict[str, list[Any]]:
    """Return the interactive figures by the name of the static figure that they replace."""
    words = trial_words(data.trials, data.metrics)
    looks = styles(data.recipes)
    shown = data.trials[data.trials["status"] != "failed"]
    return {
        "figure2": [_curves(data, m, band, words, looks) for m in data.metrics.shown],
        "final_values": [_finals(data, shown, m, words, looks) for m in data.metrics.shown],
        "sensitivity": _sensitivity(data, words, looks),
        "damping": _damping(data, words, looks),
    }


def trial_words(trials: pd.DataFrame, metrics: Metrics) -> dict[tuple[str, int], dict[str, str]]:
    """Return the texts of the tooltip of each trial: its name, outcome and hyperparameters."""
    keys = [key for key in HYPERPARAMETERS if f"params.{key}" in trials]
    words, shown = {}, list(enumerate(metrics.shown))
    for row in trials.to_dict("records"):
        settings = [
            f"{HYPERPARAMETERS[key].symbol} = {row[f'params.{key}']:.4g}"
            for key in keys
            if pd.notna(row[f"params.{key}"])
        ]
        if row["status"] == "ok":
            outcome = row["outcome"] + "".join(
                f"{', ' if n else ': '}{m.label} {digits(row[m.column])}" for n, m in shown
            )
        else:
            outcome = f"{row['outcome']}, last at step {row['steps']}"
        name = f"{row['recipe']}/{row['trial']:03d}"
        words[row["recipe"], int(row["trial"])] = {
            "name": name, "outcome": outcome, "settings": ", ".join(settings)
        }  # fmt: skip
    return words


def _curves(
    data: StudyData,
    metric: Column,
    band: Band,
    words: Mapping[Any, Mapping[str, str]],
    looks: Mapping[str, Style],
) -> Any:
    """Return a plot with one thin line a trial, and the centre with its band, or the median, a recipe."""
    last = float(data.curves["step"].max())
    plot = _plot(
        f"{metric.label} ({metric.short})", "step (one mini-batch each)", (-0.02 * last, last),
        log_limits(data.curves[metric.column], metric.edge) if metric.log else _ends(metric),
        y_axis_type="log" if metric.log else "linear",
    )  # fmt: skip
    table = curve_table(data.curves, metric, band)
    table = with_medians(table, data.curves, data.metrics.loss)
    drawn = data.curves[data.curves["status"] != "failed"]
    items, hovered = [], []
    for name in table["recipe"].unique():
        own, centre = drawn[drawn["recipe"] == name], table[table["recipe"] == name]
        lines = _trial_lines(plot, own, metric.column, words, looks[name].color)
        steps = centre["step"].to_numpy()
        if has_median(centre):
            around = plot.line(steps, _light(centre["median"]), line_width=1, line_color=looks[name].color)
        else:
            around = plot.varea(
                steps, _light(centre["low"]), _light(centre["high"]), fill_alpha=0.2,
                fill_color=looks[name].color,
            )  # fmt: skip
        middle = plot.line(
            steps, _light(centre["centre"]), line_width=2.5, line_color=looks[name].color,
            line_dash=_dash(looks[name]),
        )  # fmt: skip
        items.append((name, [middle, around, lines]))
        hovered.append(lines)
    return _finish(plot, items, hovered)


def _trial_lines(
    plot: Any, own: pd.DataFrame, column: str, words: Mapping[Any, Mapping[str, str]], color: str
) -> Any:
    """Draw the trials of one recipe; the view's filter hides a trial by its position."""
    rows: dict[str, Any] = {key: [] for key in ("xs", "ys", "name", "outcome", "settings")}
    for (recipe, number), trial in own.groupby(["recipe", "trial"], sort=True):
        thin = trial.iloc[np.unique(np.linspace(0, len(trial) - 1, POINTS).astype(int))]
        rows["xs"].append(_light(thin["step"]))
        rows["ys"].append(_light(thin[column]))
        for key, said in words[recipe, number].items():
            rows[key].append(said)
    view = CDSView(filter=BooleanFilter(booleans=[True] * len(rows["name"])))
    return plot.multi_line(
        "xs", "ys", source=ColumnDataSource(rows), view=view, line_color=color, line_width=1,
        line_alpha=min(0.45, max(0.12, 8 / max(1, len(rows["name"])))),
        hover_line_alpha=1, hover_line_width=2.5, hover_line_color=color, name="trials",
    )  # fmt: skip


def _points(plot: Any, frame: pd.DataFrame, words: Mapping[Any, Mapping[str, str]], look: Style) -> Any:
    """Draw one point a trial from columns x, y, recipe, trial, status."""
    said = [words[r, t] for r, t in zip(frame["recipe"], frame["trial"], strict=True)]
    rows: dict[str, Any] = {key: [w[key] for w in said] for key in ("name", "outcome", "settings")}
    rows |= {"x": _light(frame["x"]), "y": _light(frame["y"])}
    rows["marker"] = [_MARKERS[look.marker] if s == "ok" else "x" for s in frame["status"]]
    view = CDSView(filter=BooleanFilter(booleans=[True] * len(said)))
    return plot.scatter(
        "x", "y", source=ColumnDataSource(rows), view=view, marker="marker", size=8, line_color=look.color,
        fill_color=look.color, fill_alpha=0.6, name="trials",
    )  # fmt: skip


def _finals(
    data: StudyData, trials: pd.DataFrame, metric: Column, words: Mapping[Any, Mapping[str, str]],
    looks: Mapping[str, Style],
) -> Any:  # fmt: skip
    drawn = [name for name in data.recipes if (trials["recipe"] == name).any()]
    plot = _plot(
        "", f"final {metric.label} ({metric.short})", _ends(metric), (-0.6, len(drawn) - 0.4),
        height=80 + 55 * len(drawn),
    )  # fmt: skip
    points = []
    for row, name in enumerate(reversed(drawn)):
        own = trials[trials["recipe"] == name]
        place = own.assign(x=at_baseline(own, metric), y=row + spread(own["trial"], 0.28))
        points.append(_points(plot, place, words, looks[name]))
    plot.yaxis.ticker = list(range(len(drawn)))
    plot.yaxis.major_label_overrides = dict(enumerate(reversed(drawn)))
    plot.ygrid.visible = False
    return _finish(plot, [], points)


def _sensitivity(
    data: StudyData, words: Mapping[Any, Mapping[str, str]], looks: Mapping[str, Style]
) -> list[Any]:
    table = sensitivity_points(data.trials, data.recipes)
    made = []
    for key in table["hyperparameter"].unique():
        declared = HYPERPARAMETERS[key]
        panel = table[table["hyperparameter"] == key].rename(columns={"setting": "x", "value": "y"})
        log = on_log_axis(key, panel["x"])
        plot = _plot(
            data.minimized.named, f"{declared.help} {declared.symbol}",
            _around(panel["x"], log=log), (0, value_top(data.minimized)),
            x_axis_type="log" if log else "linear", height=280,
        )  # fmt: skip
        items = []
        for name in panel["recipe"].unique():
            points = _points(plot, panel[panel["recipe"] == name], words, looks[name])
            items.append((name, [points]))
        made.append(_finish(plot, items, [points for _, (points,) in items]))
    return made


def _damping(
    data: StudyData, words: Mapping[Any, Mapping[str, str]], looks: Mapping[str, Style]
) -> list[Any]:
    steps = data.steps[data.steps["status"] != "failed"]
    if not len(steps):
        return []
    finite = steps.assign(damping=np.clip(steps["damping"].astype(float), 1e-12, 1e38))
    plot = _plot(
        "damping λ", "step (one mini-batch each)", (0, float(steps["step"].max())),
        _around(finite["damping"], log=True), y_axis_type="log",
    )  # fmt: skip
    items: list[tuple[str, list[Any]]] = []
    for name in (n for n in data.recipes if (finite["recipe"] == n).any()):
        lines = _trial_lines(plot, finite[finite["recipe"] == name], "damping", words, looks[name].color)
        items.append((name, [lines]))
    return [_finish(plot, items, [lines for _, (lines,) in items])]


def _ends(metric: Column) -> tuple[float, float]:
    """Return the limits of the axis of a metric."""
    return limits(metric, metric.edge if np.isfinite(metric.edge) else 1.0)


def _around(values: pd.Series[float], *, log: bool) -> tuple[float, float]:
    """Return the limits of an axis around some values, with a margin."""
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.5, high * 1.5
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _plot(
    y: str, x: str, across: tuple[float, float], up: tuple[float, float], height: int = 360, **kinds: Any
) -> Any:
    """Return an empty plot with fixed ranges, so that a hidden trial leaves the axes as they are."""
    plot = figure(
        height=height, sizing_mode="stretch_width", tools=_TOOLS, active_drag="box_zoom",
        toolbar_location="above", x_range=_range(across), y_range=_range(up), x_axis_label=x,
        y_axis_label=y or None, min_border_right=12, **kinds,
    )  # fmt: skip
    plot.toolbar.logo = None
    plot.background_fill_color = plot.border_fill_color = None
    plot.outline_line_color = None
    return plot


def _range(ends: tuple[float, float]) -> Range1d:
    return Range1d(start=ends[0], end=ends[1])


def _finish(plot: Any, items: Iterable[tuple[str, list[Any]]], hovered: list[Any]) -> Any:
    """Add tooltips, and a legend whose entries hide and show a recipe."""
    entries = [LegendItem(label=name, renderers=renderers) for name, renderers in items]
    if entries:
        legend = Legend(
            items=entries, click_policy="hide", orientation="horizontal", ncols=2, border_line_color=None,
            background_fill_alpha=0, label_text_font_size="10pt", glyph_width=26, spacing=4,
        )  # fmt: skip
        plot.add_layout(legend, "above")
    plot.add_tools(HoverTool(renderers=hovered, tooltips=TOOLTIPS, line_policy="nearest"))
    return plot


def _dash(look: Style) -> Any:
    return [] if isinstance(look.line, str) else [round(2.5 * part) for part in look.line[1]]


def _light(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return values in float32, which halves the page; too large ones become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float64).astype(np.float32)
