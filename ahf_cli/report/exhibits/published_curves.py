"""The means of a study beside published curves, and their difference."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.config.shipped import published
from ahf_cli.errors import InputError
from ahf_cli.recipes.hyperparameters import nearest
from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.curves import curve_table, cut_off, step_table
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.exhibits.prerun import NORMS, scale
from ahf_cli.report.plotting import Axes, Figure
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.style import Style, styles
from ahf_cli.report.text import Table, number, within
from ahf_cli.study import opening
from ahf_cli.tasks.metrics import Column, Metrics

COLUMNS = ("curve", "data", "model", "metric", "step", "mean", "low", "high")
_LINES: tuple[Any, ...] = ((0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1.5)))
"""dashes of published curves"""
PRERUN = "prerun"
"""key of `compare.published` for the pre-run, whose curve has columns of steps.csv.gz as its metrics"""

_QUANTITIES = {"direction_l1": NORMS["l1"][1], "eq3_step_size": r"step size of Eq. 3 $\alpha_t$"}
"""labels of the columns of steps.csv.gz that the package's curve of a pre-run has"""


def read_curve(source: str) -> pd.DataFrame:
    """Return a published curve: the columns `COLUMNS` after the first, by metric in the order of the steps.

    Args:
        source: FILE/CURVE, with a file of this package or the path of another one.  It is CSV with the
            columns `COLUMNS`; `data` and `model` are those of the task, and lines that begin with # are
            comments.

    Raises:
        InputError: no such file or curve, or the file is not such a table.
    """
    file, _, name = source.rpartition("/")
    shipped = published()
    kinds = dict.fromkeys(COLUMNS[:4], str) | dict.fromkeys(COLUMNS[4:], float)
    try:
        content = shipped[file].read_bytes() if file in shipped else opening.read(Path(file))
        lines = [line for line in content.decode().splitlines() if not line.startswith("#")]
        table = pd.read_csv(io.StringIO("\n".join(lines)), dtype=kinds, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such file{nearest(file, shipped)}") from None
    except ValueError as error:  # of pandas' parser, or bytes that are no text
        raise InputError(f"{file}: not a table of curves: {str(error).partition(chr(10))[0]}") from None
    if lacking := [column for column in COLUMNS if column not in table]:
        raise InputError(f"{file}: must have the columns {', '.join(COLUMNS)}; lacks {', '.join(lacking)}")
    own = table[table["curve"] == name]
    if own.empty:
        raise InputError(f"{file}: unknown curve {name!r}{nearest(name, table['curve'].unique())}")
    if not np.isfinite(own[list(COLUMNS[4:])].to_numpy()).all():
        raise InputError(f"{file}: step, mean, low and high must be finite numbers")
    if (own["low"] > own["mean"]).any() or (own["mean"] > own["high"]).any():
        raise InputError(f"{file}: the curve {name!r} must have low ≤ mean ≤ high")
    if own.duplicated(["metric", "step"]).any() or len(own[["data", "model"]].drop_duplicates()) > 1:
        raise InputError(f"{file}: the curve {name!r} must have one task, and each step of a metric once")
    return own[list(COLUMNS[1:])].sort_values(["metric", "step"], ignore_index=True)


def beside_table(
    evaluations: pd.DataFrame, chosen: Mapping[str, str], curves: Mapping[str, pd.DataFrame], metrics: Metrics
) -> pd.DataFrame:
    """Return mean and standard error of each recipe at its evaluations beside a published curve.

    The published values are interpolated linearly between their steps.  Values of trials are not capped.  A
    trial that diverged leaves the mean of a loss, and counts at the baseline of another metric: a network of
    NaN guesses.  Failed trials are left out.

    Args:
        evaluations: columns of `curves_frame`.
        chosen: source of the curve of each recipe.
        curves: the curves by source, as of `read_curve`.
        metrics: those of the task; one that a curve lacks, or with a logarithmic axis, is left out.

    Returns:
        Columns: metric, recipe, step, n, centre, low, high, curve, published, published_low, published_high,
        difference, in_errors.  `difference` is centre − published, and `in_errors` the same in standard
        errors of the centre.
    """
    frames = []
    short = {source: source.rpartition("/")[2] for source in curves}
    names = {s: n if list(short.values()).count(n) == 1 else s for s, n in short.items()}
    for metric in (m for m in metrics.shown if not m.log):
        # a network of NaN guesses, and its loss is not finite
        left_as = np.nan if metric == metrics.loss or metric.baseline is None else metric.baseline
        lines = curve_table(evaluations[evaluations["recipe"].isin(chosen)], metric, "se", left_as)
        for recipe, line in lines.groupby("recipe", sort=False):
            source = chosen[str(recipe)]
            frames.append(_beside(line, curves[source], metric.column).assign(curve=names[source]))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _beside(line: pd.DataFrame, curve: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows of a line at steps of a published curve, with its values and the differences."""
    known = curve[curve["metric"] == metric]
    line = line[line["step"].between(known["step"].min(), known["step"].max())]
    if line.empty:
        return line
    given = {k: np.interp(line["step"].to_numpy(float), known["step"], known[k]) for k in COLUMNS[5:]}
    gap, error = line["centre"] - given["mean"], line["high"] - line["centre"]
    beside = {"published": given["mean"], "published_low": given["low"], "published_high": given["high"]}
    return line.assign(**beside, difference=gap, in_errors=gap / error)


def _found(data: StudyData, published: Mapping[str, str]) -> pd.DataFrame | str | None:
    published = {name: source for name, source in published.items() if name != PRERUN}
    if not published:
        return None
    bare = {name: name.rpartition("/")[2] for name in data.recipes}
    chosen = {name: published[own] for name, own in bare.items() if own in published}
    if not chosen:
        return f"the study has none of the recipes of compare.published, {', '.join(published)}"
    try:
        curves = {source: _of_task(data, source) for source in chosen.values()}
    except InputError as error:
        return error.lines[0]
    table = beside_table(data.curves, chosen, curves, data.metrics)
    return table if len(table) else "no published curve has a metric and a step of the study"


def _of_task(data: StudyData, source: str) -> pd.DataFrame:
    """Return a published curve, or raise InputError if it is one of another task."""
    curve = read_curve(source)
    theirs = curve[["data", "model"]].iloc[0].to_dict()
    for _, identity in data.identities:
        if theirs != {key: str(identity.get("task", {}).get(key)) for key in theirs}:
            of = " and ".join(f"task.{key} {value}" for key, value in theirs.items())
            raise InputError(f"{source} is a curve of {of}")
    return curve


def _figure(data: StudyData, published: Mapping[str, str]) -> Drawing | str | None:
    table = _found(data, published)
    if not isinstance(table, pd.DataFrame):
        return table
    names = list(dict.fromkeys(table["recipe"]))
    metrics = [metric for metric in data.metrics.shown if metric.column in set(table["metric"])]
    looks, curve_of = styles(names), dict(zip(table["recipe"], table["curve"], strict=True))
    dashes = dict(zip(dict.fromkeys(curve_of.values()), _LINES * len(names), strict=False))
    said = ", ".join(f"{curve_of[name]} beside {name}" for name in names)
    files = ", ".join(dict.fromkeys(source.rpartition("/")[0] for source in published.values()))
    own = data.trials[data.trials["recipe"].isin(names)]
    caption = [
        f"{marks.band_words('se', False)}. Published means are black with grey bands, of {files}: {said}. "
        f"Trials: {marks.counts(own, names)}. The lower panels show the mean minus the published one, with a "
        "standard error of the mean alone. Losses have no cap. Means and bands that reach above a panel have "
        "gaps there. A trial that diverged leaves the mean of the "
        f"loss, and counts as chance in other metrics. {marks.START_WORDS}",
        *cut_off(table, data.metrics),
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = marks.grid(figure, theme, 2 * len(metrics), len(metrics))
        for at, metric in enumerate(metrics):
            upper, lower = panels[at], panels[at + len(metrics)]
            lines = table[table["metric"] == metric.column]
            for name, line in _with_gaps(lines, metric.edge).groupby("recipe", sort=False):
                _pair(upper, lower, line, looks[str(name)], str(name) if at == 0 else None)
            for curve, line in lines.groupby("curve", sort=False):
                label = f"{curve}, published" if at == 0 else None
                _dashed(upper, line.drop_duplicates("step").sort_values("step"), dashes[str(curve)], label)
            both = [*marks.settled(lines), *marks.settled(lines, y="published")]
            upper.set(xlabel=marks.STEP_LABEL, ylabel=marks.labelled(metric, theme))
            upper.set_ylim(*marks.zoomed(both, metric))
            _zero(lower, metric.label)
            lower.set_ylim(*_around_0(lines, metric))
        marks.legend(figure, theme)

    title = "The study beside published curves"
    return Drawing("published", title, table, caption, draw, panels=2 * len(metrics), across=len(metrics))


def _before(data: StudyData, published: Mapping[str, str]) -> Drawing | str | None:
    """Draw the pre-run's mean beside the published one at its steps, with the difference below it."""
    if PRERUN not in published:
        return None
    steps, _ = data.prerun
    if steps.empty:
        return "the study has no pre-run with steps"
    try:
        curve = _of_task(data, published[PRERUN])
    except InputError as error:
        return error.lines[0]
    shared = [metric for metric in curve["metric"].unique() if metric in steps]
    if not shared:
        return f"{published[PRERUN]} has no metric that is a column of steps.csv.gz"
    steps = steps[steps["step"].isin(curve["step"])]  # a peak between them has no published counterpart
    if steps.empty:
        return f"{published[PRERUN]} has no step of the pre-run"
    own = step_table(steps, shared, "se").groupby("quantity", sort=False)
    table = pd.concat([_beside(line, curve, str(name)) for name, line in own], ignore_index=True)
    names = [name for name in shared if name in set(table["quantity"])]
    recipe, n = data.sources[0][1].prerun.recipes()[0], steps["trial"].nunique()
    table = table.assign(recipe=recipe)
    caption = [
        f"{marks.band_words('se', n == 1)}, n = {n} trials of {recipe}, at the published steps. The "
        f"published mean is black with a grey band, of {published[PRERUN]}. The lower panels show the mean "
        "minus the published one, with a standard error of the mean alone. Where an upper axis is "
        "logarithmic, the lower one is linear up to the median of the published values, and logarithmic "
        "beyond."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels, look = marks.grid(figure, theme, 2 * len(names), len(names)), styles([recipe])[recipe]
        for at, name in enumerate(names):
            upper, lower = panels[at], panels[at + len(names)]
            line = table[table["quantity"] == name]
            label = _QUANTITIES.get(name, name)
            _pair(upper, lower, line, look, recipe if at == 0 else None)
            _dashed(upper, line, _LINES[0], "published" if at == 0 else None)
            upper.set(xlabel=marks.STEP_LABEL, ylabel=label)
            scale(upper, pd.concat([line["centre"], line["published"]]), line["high"])
            if upper.get_yscale() == "log":
                lower.set_yscale("symlog", linthresh=float(line["published"].median()))
            _zero(lower, label)
        marks.legend(figure, theme)

    title = "The pre-run beside the published one"
    panels = 2 * len(names)
    return Drawing("published_prerun", title, table, caption, draw, panels, 0.85, across=len(names))


def _with_gaps(lines: pd.DataFrame, edge: float) -> pd.DataFrame:
    """Return lines without means above the edge of the panel, and without bands that reach above it."""
    means, bands = lines["centre"] > edge, lines["high"] > edge
    columns = {"centre": means, "difference": means, "low": bands, "high": bands}
    return lines.assign(**{name: lines[name].mask(out) for name, out in columns.items()})


def _pair(upper: Axes, lower: Axes, line: pd.DataFrame, look: Style, label: str | None) -> None:
    """Draw a recipe's mean, and below it the difference with the standard error of the mean."""
    half, gap = line["high"] - line["centre"], line["difference"]
    marks.line(upper, line, look, label)
    marks.line(lower, line.assign(centre=gap, low=gap - half, high=gap + half), look, None)


def _zero(lower: Axes, label: str) -> None:
    """Mark difference 0, and name the axes of differences."""
    lower.axhline(0, color="0.45", linewidth=0.8)
    lower.set(xlabel=marks.STEP_LABEL, ylabel=f"difference in {label}")


def _dashed(axes: Axes, line: pd.DataFrame, dashes: Any, label: str | None) -> None:
    """Draw a published curve over its band."""
    along = line["step"].to_numpy(float)
    axes.plot(along, line["published"], color="black", linestyle=dashes, linewidth=1.3, label=label, zorder=4)
    low, high = line["published_low"].to_numpy(float), line["published_high"].to_numpy(float)
    axes.fill_between(along, low, high, color="black", alpha=0.1, linewidth=0, zorder=1)


def _around_0(lines: pd.DataFrame, metric: Column) -> tuple[float, float]:
    """Return limits of an axis of differences around 0, by the means that stay in the upper panel."""
    inside = lines[lines["centre"] <= metric.edge]
    most = float(np.max(np.abs(marks.settled(inside, y="difference")), initial=0.0))
    return (-1.1 * most, 1.1 * most) if most else (-1.0, 1.0)


def _table(data: StudyData, published: Mapping[str, str]) -> Table | None:
    """Return the differences in the middle and at the end of each recipe's curve."""
    table = _found(data, published)
    if not isinstance(table, pd.DataFrame):
        return None
    groups = table.groupby(["recipe", "metric"], sort=False)
    kept = pd.concat([own.iloc[[(len(own) - 1) // 2, -1]].drop_duplicates() for _, own in groups])
    labels = {metric.column: metric.label for metric in data.metrics.shown}
    text = pd.DataFrame(
        {
            "recipe": kept["recipe"],
            "published curve": kept["curve"],
            "metric": kept["metric"].map(labels),
            "step": kept["step"].map("{:g}".format),
            "mean": kept["centre"].map(number),
            "published mean [band]": [within(row, "published") for row in kept.to_dict("records")],
            "difference": kept["difference"].map(number),
            "in standard errors": kept["in_errors"].map(lambda value: number(value, 1)),
        }
    )
    note = "Standard errors are those of the study's means; the published means have their own, unknown ones."
    return Table("published", table, {"Means beside published curves": text}, note)


EXHIBIT = Exhibit(
    2,
    [lambda data, choices: _table(data, choices.published)],
    {
        "published": lambda data, choices: _figure(data, choices.published),
        "published_prerun": lambda data, choices: _before(data, choices.published),
    },
)
