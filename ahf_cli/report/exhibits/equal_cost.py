"""Values of recipes at equal cost, in steps, work or seconds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.curves import drawn_line, limits, line_frame, median_words
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.outcomes import capped
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics.interval import Interval, mean_interval
from ahf_cli.report.statistics.trajectory import Array, Band, value_at_cost
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.style import styles
from ahf_cli.report.text import NOTHING, Table, number, spread_interval, within
from ahf_cli.report.work import COUNTED, CostWords
from ahf_cli.tasks.metrics import Column, Metrics

COSTS = ("step", "work", "seconds")
"""Columns of a curve that are costs."""
PLURAL = {"step": "steps"}
BUDGETS = 7
"""Costs at which recipes are compared, for each kind of cost."""


def labels(words: CostWords) -> dict[str, str]:
    """Return the labels of the costs."""
    return {"step": "steps", "work": words.work, "seconds": words.seconds}


def equal_cost_table(
    curves: pd.DataFrame, names: list[str], metrics: Metrics, words: CostWords = COUNTED
) -> Table:
    """Headline and training loss of each recipe at equal costs, for each kind of cost.

    The largest cost is the least over the recipes of the median total, so half the trials of each recipe
    reach it.  The others lie on a logarithmic grid from the first evaluation on.  A trial that ended before
    has its last value, a diverged trial the baseline.  A recipe has no value (NaN) at a cost where fewer than
    half of its trials had been evaluated after their first step.
    """
    done = curves[curves["status"] != "failed"]
    rows, text = [], {}
    headline = metrics.headline
    for cost in COSTS:
        amounts = budgets_of(done, cost)
        if not len(amounts):
            continue
        heads = [short(at) for at in amounts]
        heads[-1] += ", 95 %"
        shown = {}
        for name in names:
            own = done[done["recipe"] == name]
            found = along(own, cost, amounts, metrics) if len(own) else []
            pairs = zip(amounts, found, strict=False)
            rows += [{"cost": cost, "at": float(at), "recipe": name, **values} for at, values in pairs]
            means = [number(values[headline.column], 3) for values in found[:-1]]
            means += [within(values, headline.column) for values in found[-1:]]
            shown[name] = dict(zip(heads, means or [NOTHING] * len(heads), strict=True))
        cells = {head: [shown[name][head] for name in names] for head in heads}
        title = f"{headline.label.capitalize()} at equal {PLURAL.get(cost, cost)}, mean"
        text[title] = pd.DataFrame({"recipe": names, **cells})
    note = f"{NOTHING}: fewer than half of the trials had been evaluated. {words.sentences}"
    return Table("equal_cost", pd.DataFrame(rows), text, note)


def budgets_of(done: pd.DataFrame, cost: str) -> Array:
    """Return the costs of comparison: from the first evaluation of a recipe to the largest common total."""
    by = ["recipe", "trial"]
    totals = done.groupby(by)[cost].max().groupby("recipe").median()
    spent = totals[totals > 0]
    if not len(spent):
        return np.array([])
    evaluated = done[(done["step"] > 0) & (done[cost] > 0)]
    first, last = evaluated.groupby(by)[cost].min().groupby("recipe").median().min(), float(spent.min())
    if not first < last:
        return np.array([last])
    inner = np.geomspace(first, last, BUDGETS)[1:-1]
    if cost == "step":
        inner = np.unique(inner.round())
    return np.array([first, *inner[(inner > first) & (inner < last)], last])


def short(cost: float) -> str:
    """Return a cost as text with three digits, or all digits before the point."""
    return NOTHING if np.isnan(cost) else f"{cost:.0f}" if cost >= 100 else f"{cost:.3g}"


def along(own: pd.DataFrame, cost: str, amounts: Array, metrics: Metrics) -> list[dict[str, float]]:
    """Return the means of one recipe's trials at each cost, with their intervals, by column.

    They are NaN at a cost where fewer than half of the trials had been evaluated after their first step.
    """
    found: list[dict[str, float]] = [{} for _ in amounts]
    for metric in metrics.shown:
        values = values_along(own, metric, cost, amounts)
        for at, row, column in zip(amounts, found, values.T, strict=True):
            mean = mean_interval(column).clipped(0, metric.top)
            if not _evaluated(own, cost, float(at)):
                mean = Interval(np.nan, np.nan, np.nan)
            row |= {"n": len(column)} | spread_interval(metric.column, mean)
    return found


def _evaluated(own: pd.DataFrame, cost: str, spent: float) -> bool:
    """Return whether at a cost half the trials of a recipe had been evaluated after a step."""
    first = own[own["step"] > 0].groupby("trial")[cost].min()
    ended = own.groupby("trial")[cost].max()  # includes trials that diverged before an evaluation
    known = (first.astype(float).reindex(ended.index, fill_value=np.inf) <= spent) | (ended < spent)
    return bool(known.mean() >= 0.5)


def values_along(own: pd.DataFrame, metric: Column, cost: str, spent: Array) -> Array:
    """Return the last evaluated values of one recipe's trials at many costs, (trials, costs).

    A trial that ended before has its last value, a diverged trial the baseline.
    """
    ends = own.sort_values("step").groupby("trial").last()
    diverged = (ends["status"] == "diverged").to_numpy()
    last = np.where(
        diverged,
        np.nan if metric.baseline is None else metric.baseline,
        capped(ends[metric.column].astype(float), metric).to_numpy(float),
    )
    own = own.assign(**{metric.column: capped(own[metric.column].astype(float), metric)})
    values, costs = by_trial(own, metric.column), by_trial(own, cost)
    known = np.stack([value_at_cost(values, costs, amount) for amount in spent], axis=1)
    return np.where(np.isnan(known), last[:, None], known)


def by_trial(own: pd.DataFrame, column: str) -> Array:
    """Return a column as (trials, evaluations), NaN after a trial's end."""
    once = own.drop_duplicates(["trial", "step"])
    wide = pd.Series(
        once[column].to_numpy(), [once["trial"], once["step"]]
    ).unstack()  # the column may be the step itself
    return wide.sort_index(axis=1).to_numpy(float)


POINTS = 101

SPENT = ("work", "seconds")


def spent_table(curves: pd.DataFrame, names: list[str], kind: Band, metric: Column) -> pd.DataFrame:
    """Centre and band of the headline at costs up to the median total of a recipe's trials.

    Columns: cost, recipe, spent (the amount), n, centre, low, high.
    """
    done = curves[curves["status"] != "failed"]
    frames = []
    for cost in SPENT:
        for name in names:
            own = done[done["recipe"] == name]
            if not len(own):
                continue
            total = float(own.groupby("trial")[cost].max().median())
            amounts = np.linspace(0, total, POINTS)
            values = values_along(own, metric, cost, amounts)
            frames.append(line_frame({"cost": cost, "recipe": name, "spent": amounts}, values, kind))
    columns = ["cost", "recipe", "spent", "n", "centre", "low", "high"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def equal_cost(
    curves: pd.DataFrame, names: list[str], kind: Band, metric: Column, words: CostWords = COUNTED,
    references: Mapping[str, float] | None = None,
) -> Drawing | str:  # fmt: skip
    """Return a drawing of centre and band of the headline against work and against seconds."""
    table = spent_lines(curves, names, kind, metric)
    if not len(table):
        return "no trial was evaluated"
    looks = styles(names)
    gone = " A mean that leaves the panel is replaced by the median." if "median" in table else ""
    start = "" if metric.log else f" {marks.START_WORDS}"
    caption = [
        f"{metric.label.capitalize()} against the cost of a trial, in work and in seconds. {words.sentences} "
        "Between two evaluations the earlier value holds; a line ends where half the trials had ended. "
        f"{marks.band_words(kind, False)}.{start}{gone}{marks.reference_words(references or {})}"
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, cost) in enumerate(zip(marks.grid(figure, theme, 2), SPENT, strict=True)):
            lines = table[table["cost"] == cost].rename(
                columns={"spent": "step"}
            )  # `marks.line` needs these names
            for name in lines["recipe"].unique():
                label = f"{name}{median_words(table, name)}" if at == 0 else None
                own = drawn_line(lines[lines["recipe"] == name])
                marks.line(axes, own, looks[name], label, filled=len(names) <= marks.FILLED)
            marks.references(axes, references or {})
            axes.set(xlabel=labels(words)[cost], ylabel=marks.labelled(metric, theme))
            limits(axes, lines, metric, references or {})
            if metric.log:
                axes.set(xscale="log", xlim=marks.log_limits(lines.loc[lines["step"] > 0, "step"]))
            else:
                axes.set_xlim(0, max(float(lines["step"].max()), 1e-9))
            marks.baseline(axes, metric)
        marks.legend(figure, theme)

    return Drawing("equal_cost", f"{metric.label.capitalize()} at equal cost", table, caption, draw, panels=2)


def spent_lines(curves: pd.DataFrame, names: list[str], kind: Band, metric: Column) -> pd.DataFrame:
    """Return the table of `spent_table` with medians of the recipes whose mean leaves the panel."""
    table = spent_table(curves, names, kind, metric)
    gone = list(table.loc[table["centre"] > metric.edge, "recipe"].unique())
    if not gone or kind == "iqr":  # its centre is the median
        return table
    medians = spent_table(curves, gone, "iqr", metric).rename(columns={"centre": "median"})
    keys = ["cost", "recipe", "spent"]
    return table.merge(medians[[*keys, "median"]], on=keys, how="left")


def cost_table(data: StudyData) -> Table:
    """Return the median total costs of each recipe's trials, and the units of their work where measured.

    Columns are steps, gradients, products, losses, examples, work, seconds, and seconds_run, the time of the
    runs themselves.  Units are product and setup in gradients, and overhead in seconds a step.
    """
    done = data.curves[data.curves["status"] != "failed"]
    kinds = {"step": "steps", **{name: name for name in COUNTS}}
    rows = []
    for name in data.recipes:
        own = done[done["recipe"] == name]
        if len(own):
            totals = own.groupby("trial")[list(kinds)].max().astype(float).median()
            rows.append({"recipe": name, "n": own["trial"].nunique(), **totals.rename(kinds).to_dict()})
    numbers = pd.DataFrame(rows)
    if len(data.costs) == 1 and rows:
        units = data.costs[0]
        for unit in ("product", "setup", "overhead"):
            numbers[f"unit_{unit}"] = [getattr(units.recipes[name], unit) for name in numbers["recipe"]]
        numbers["unit_loss"], numbers["unit_gradient"] = units.loss, units.gradient
    text = numbers[["recipe", "n"]].astype(str) if rows else numbers
    for name in kinds.values() if rows else ():
        text[name.replace("seconds_run", "seconds as run")] = [short(v) for v in numbers[name]]
    return Table("cost", numbers, {"Median cost of a trial": text}, data.cost_words.sentences)


COUNTS = ("gradients", "products", "losses", "examples", "work", "seconds", "seconds_run")


EXHIBIT = Exhibit(
    3,
    [
        lambda d, _: equal_cost_table(d.curves, d.recipes, d.metrics, d.cost_words),
        lambda d, _: cost_table(d),
    ],
    {
        "equal_cost": lambda d, choices: equal_cost(
            d.curves, d.recipes, choices.band, d.metrics.headline, d.cost_words, choices.references
        )
    },
)
