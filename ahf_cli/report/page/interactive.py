"""Interactive figures of the page, drawn with Bokeh: zoom, and a switch for each recipe and trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, HoverTool, LogTicker, Range1d
from bokeh.models.annotations import Legend, LegendItem
from bokeh.plotting import figure

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.report.exhibits.curves import curve_table, drawn_line, median_words, with_medians
from ahf_cli.report.exhibits.equal_cost import SPENT, labels, spent_lines
from ahf_cli.report.exhibits.prerun import prerun_steps
from ahf_cli.report.exhibits.sensitivity import on_log_axis, sensitivity_points
from ahf_cli.report.marks import FILLED, STEP_LABEL, log_limits, settled, spread, zoomed
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.statistics.trajectory import Band
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.style import Style, styles
from ahf_cli.tasks.metrics import Column

POINTS = 120
"""most drawn steps of a trial"""
HEIGHT = 420
"""least height of a plot in pixels, its axis included; its legend comes on top"""
_ROW = 24
"""height of a row of a legend in pixels"""
_TOOLS = "pan,box_zoom,wheel_zoom,reset,save"
_MARKERS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "inverted_triangle",
            "P": "plus", "p": "square_pin", "<": "triangle_pin", ">": "square_dot", "*": "star",
            "h": "hex", "d": "diamond_dot"}  # fmt: skip


def figures(data: StudyData, band: Band) -> dict[str, list[Any]]:
    """Return the interactive figures by the name of the static figure that they replace."""
    looks = styles(data.recipes)
    shown = data.trials[data.trials["status"] != "failed"]
    return {
        "prerun_steps": _prerun(data),
        "figure2": [_curves(data, m, band, looks) for m in data.metrics.shown],
        "equal_cost": _equal_cost(data, band, looks),
        "final_values": [_finals(data, shown, m, looks) for m in data.metrics.shown],
        "sensitivity": _sensitivity(data, looks),
        "damping": _damping(data, looks),
    }


def _curves(data: StudyData, metric: Column, band: Band, looks: Mapping[str, Style]) -> Any:
    """Return a plot of one metric against step."""
    table = pd.concat([curve_table(data.curves, m, band) for m in data.metrics.shown], ignore_index=True)
    table = with_medians(table, data.curves, data.metrics, band)
    lines = table[table["metric"] == metric.column]
    last = float(data.curves["step"].max())
    return _centres(data, metric, lines, "step", (-0.02 * last, last), STEP_LABEL, looks)


def _equal_cost(data: StudyData, band: Band, looks: Mapping[str, Style]) -> list[Any]:
    """Return a plot of the headline against work, and one against seconds."""
    metric, made = data.metrics.headline, []
    table = spent_lines(data.curves, data.recipes, band, metric)
    for cost in SPENT if len(table) else ():
        lines = table[table["cost"] == cost].rename(columns={"spent": cost})
        known = lines.loc[lines[cost] > 0, cost]
        across = log_limits(known) if metric.log else (0.0, float(known.max()) if len(known) else 1.0)
        label = labels(data.cost_words)[cost]
        made.append(_centres(data, metric, lines, cost, across, label, looks))
    return made


def _centres(
    data: StudyData, metric: Column, lines: pd.DataFrame, x: str, across: tuple[float, float], label: str,
    looks: Mapping[str, Style],
) -> Any:  # fmt: skip
    """Return a plot with one thin line a trial, and the centre with its band, or the median, a recipe."""
    names = list(lines["recipe"].unique())
    centres = {name: drawn_line(lines[lines["recipe"] == name]) for name in names}
    drawn = data.curves[data.curves["status"] != "failed"]
    up = log_limits(drawn[metric.column], metric.edge)
    if not metric.log:
        up = zoomed(settled(pd.concat(centres.values()), x), metric) if names else (0.0, 1.0)
    kind = "log" if metric.log else "linear"
    plot = _plot(
        metric.named, label, across, up, len(names), y_axis_type=kind,
        x_axis_type="linear" if x == "step" else kind,
    )  # fmt: skip
    items, hovered = [], []
    for name, centre in centres.items():
        own = _trial_lines(plot, drawn[drawn["recipe"] == name], metric.column, looks[name].color, x)
        parts = _centre(plot, centre, x, looks[name], filled=len(names) <= FILLED)
        items.append((f"{name}{median_words(lines, name)}", [*parts, own]))
        hovered.append(own)
    return _finish(plot, items, hovered)


def _centre(plot: Any, line: pd.DataFrame, x: str, look: Style, *, filled: bool) -> list[Any]:
    """Draw a centre line with its band, or with the edges of the band."""
    along, low, high = (_light(line[column]) for column in (x, "low", "high"))
    if filled:
        band = plot.varea(along, low, high, fill_alpha=0.2, fill_color=look.color)
    else:
        band = plot.multi_line([along, along], [low, high], line_alpha=0.6, line_color=look.color)
    dash = _dash(look)
    return [
        plot.line(along, _light(line["centre"]), line_width=2.5, line_color=look.color, line_dash=dash),
        band,
    ]


def _prerun(data: StudyData) -> list[Any]:
    """Return the plots of Figure 1: norm of the direction and step size, one thin line a trial."""
    steps, norm = data.prerun
    if not len(steps):
        return []
    table, look = prerun_steps(steps, norm).table, styles(["adaptive_hf"])["adaptive_hf"]
    names = {"direction": "norm of the direction g", "step_size": "step size α"}
    made = []
    for quantity, own in table.groupby("quantity", sort=False):
        label = names["step_size" if quantity == "step_size" else "direction"]
        last, positive = float(steps["step"].max()), own[own["centre"] > 0]
        ends = own["centre"].max()
        log = len(positive) > 0 and ends > 50 * positive["centre"].min()
        up = log_limits(own["centre"]) if log else (0.0, 1.05 * float(own["high"].fillna(ends).max()) or 1.0)
        plot = _plot(label, STEP_LABEL, (0, last), up, 0, y_axis_type="log" if log else "linear")
        trials = _trial_lines(plot, steps, str(quantity), look.color, before="pre-run ")
        _centre(plot, own, "step", look, filled=True)
        made.append(_finish(plot, [], [trials]))
    return made


def _trial_lines(
    plot: Any, own: pd.DataFrame, column: str, color: str, x: str = "step", before: str = ""
) -> Any:
    """Draw trials by their names, with words before; the view's filter hides a trial by its position."""
    rows: dict[str, Any] = {key: [] for key in ("xs", "ys", "name")}
    for (recipe, number), trial in own.groupby(["recipe", "trial"], sort=True):
        thin = trial.iloc[np.unique(np.linspace(0, len(trial) - 1, POINTS).astype(int))]
        rows["xs"].append(_light(thin[x]))
        rows["ys"].append(_light(thin[column]))
        rows["name"].append(f"{before}{recipe}/{number:03d}")
    view = CDSView(filter=BooleanFilter(booleans=[True] * len(rows["name"])))
    return plot.multi_line(
        "xs", "ys", source=ColumnDataSource(rows), view=view, line_color=color, line_width=1,
        line_alpha=min(0.45, max(0.12, 8 / max(1, len(rows["name"])))),
        hover_line_alpha=1, hover_line_width=2.5, hover_line_color=color,
        name="prerun" if before else "trials",
    )  # fmt: skip


def _points(plot: Any, frame: pd.DataFrame, look: Style) -> Any:
    """Draw one point a trial from columns x, y, recipe, trial, status."""
    names = [f"{r}/{t:03d}" for r, t in zip(frame["recipe"], frame["trial"], strict=True)]
    rows: dict[str, Any] = {"name": names, "x": _light(frame["x"]), "y": _light(frame["y"])}
    rows["marker"] = [_MARKERS[look.marker] if s == "ok" else "x" for s in frame["status"]]
    view = CDSView(filter=BooleanFilter(booleans=[True] * len(names)))
    return plot.scatter(
        "x", "y", source=ColumnDataSource(rows), view=view, marker="marker", size=8, line_color=look.color,
        fill_color=look.face, fill_alpha=0.6, name="trials",
    )  # fmt: skip


def _finals(data: StudyData, trials: pd.DataFrame, metric: Column, looks: Mapping[str, Style]) -> Any:
    drawn = [name for name in data.recipes if (trials["recipe"] == name).any()]
    values = at_baseline(trials, metric)
    across = log_limits(values, metric.edge) if metric.log else zoomed(values, metric)
    plot = _plot(
        "", f"final {metric.named}", across, (-0.6, len(drawn) - 0.4), 0,
        x_axis_type="log" if metric.log else "linear", height=max(HEIGHT, 80 + 45 * len(drawn)),
    )  # fmt: skip
    points = []
    for row, name in enumerate(reversed(drawn)):
        own = trials[trials["recipe"] == name]
        place = own.assign(x=at_baseline(own, metric), y=row + spread(own["trial"], 0.28))
        points.append(_points(plot, place, looks[name]))
    plot.yaxis.ticker = list(range(len(drawn)))
    plot.yaxis.major_label_overrides = dict(enumerate(reversed(drawn)))
    plot.ygrid.visible = False
    return _finish(plot, [], points)


def _sensitivity(data: StudyData, looks: Mapping[str, Style]) -> list[Any]:
    table, objective = sensitivity_points(data.trials, data.recipes), data.minimized
    values = table["value"].astype(float)
    up = log_limits(values) if objective.log else zoomed(values, objective)
    made = []
    for key in table["hyperparameter"].unique():
        declared = HYPERPARAMETERS[key]
        panel = table[table["hyperparameter"] == key].rename(columns={"setting": "x", "value": "y"})
        log = on_log_axis(key, panel["x"])
        plot = _plot(
            objective.named, f"{declared.help} {declared.symbol}",
            _around(panel["x"], log=log), up, panel["recipe"].nunique(),
            x_axis_type="log" if log else "linear", y_axis_type="log" if objective.log else "linear",
        )  # fmt: skip
        items = []
        for name in panel["recipe"].unique():
            points = _points(plot, panel[panel["recipe"] == name], looks[name])
            items.append((name, [points]))
        made.append(_finish(plot, items, [points for _, (points,) in items]))
    return made


def _damping(data: StudyData, looks: Mapping[str, Style]) -> list[Any]:
    steps = data.steps[data.steps["status"] != "failed"]
    if not len(steps):
        return []
    finite = steps.assign(damping=np.clip(steps["damping"].astype(float), 1e-12, 1e38))
    plot = _plot(
        "damping λ", STEP_LABEL, (0, float(steps["step"].max())), _around(finite["damping"], log=True),
        finite["recipe"].nunique(), y_axis_type="log",
    )  # fmt: skip
    items: list[tuple[str, list[Any]]] = []
    for name in (n for n in data.recipes if (finite["recipe"] == n).any()):
        lines = _trial_lines(plot, finite[finite["recipe"] == name], "damping", looks[name].color)
        items.append((name, [lines]))
    return [_finish(plot, items, [lines for _, (lines,) in items])]


def _around(values: pd.Series[float], *, log: bool) -> tuple[float, float]:
    """Return the limits of an axis around some values, with a margin."""
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.5, high * 1.5
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _plot(
    y: str, x: str, across: tuple[float, float], up: tuple[float, float], named: int, height: int = HEIGHT,
    **kinds: Any,
) -> Any:  # fmt: skip
    """Return an empty plot with fixed ranges, so that a hidden trial leaves the axes as they are.

    `named` is the number of recipes in its legend.
    """
    plot = figure(
        height=height + _ROW * -(-named // 2), sizing_mode="stretch_width", tools=_TOOLS,
        active_drag="box_zoom", toolbar_location="above", x_range=_range(across), y_range=_range(up),
        x_axis_label=x, y_axis_label=y or None, min_border_right=12, **kinds,
    )  # fmt: skip
    if kinds.get("x_axis_type") == "log":
        plot.xaxis.ticker = LogTicker(desired_num_ticks=3, mantissas=[1, 2, 5])  # more overlap on a phone
    plot.toolbar.logo = None
    plot.background_fill_color = plot.border_fill_color = None
    plot.outline_line_color = None
    return plot


def _range(ends: tuple[float, float]) -> Range1d:
    return Range1d(start=ends[0], end=ends[1])


def _finish(plot: Any, items: Iterable[tuple[str, list[Any]]], hovered: list[Any]) -> Any:
    """Add a legend whose entries hide and show a recipe, and highlight a trial below the pointer.

    The page writes the trial's texts below the plot, where they cover no line.
    """
    entries = [LegendItem(label=name, renderers=renderers) for name, renderers in items]
    if entries:
        legend = Legend(
            items=entries, click_policy="hide", orientation="horizontal", ncols=2, border_line_color=None,
            background_fill_alpha=0, label_text_font_size="10pt", glyph_width=26, spacing=4,
        )  # fmt: skip
        plot.add_layout(legend, "above")
    plot.add_tools(HoverTool(renderers=hovered, tooltips=None))
    return plot


def _dash(look: Style) -> Any:
    return [] if isinstance(look.line, str) else [round(2.5 * part) for part in look.line[1]]


def _light(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return values in float32, which halves the page; too large ones become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float64).astype(np.float32)
