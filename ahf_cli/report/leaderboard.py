"""A leaderboard: recipes of several fair studies, in one table for each task, length and code."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.errors import AhfError
from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.conditions import code, differences, length_of
from ahf_cli.report.exhibits.equal_cost import along, budgets_of, short
from ahf_cli.report.exhibits.finals import final_table
from ahf_cli.report.exhibits.new_seeds import rerun_table
from ahf_cli.report.exhibits.time_to_target import target_table
from ahf_cli.report.plotting import Figure, MaxNLocator
from ahf_cli.report.shared import same_reruns
from ahf_cli.report.statistics.clusters import two_clusters
from ahf_cli.report.statistics.interval import Interval
from ahf_cli.report.study_data import StudyData, pool, read_study
from ahf_cli.report.style import styles
from ahf_cli.report.text import number, spread_interval, within
from ahf_cli.report.verdict import ONE_SEED
from ahf_cli.study.store import Study
from ahf_cli.tasks.metrics import Column
from ahf_cli.training.outcome import OUTCOMES

NEAR = 0.99
"""The default target, as a share of the best mean."""
PLACES = {"at_seconds": "at equal seconds", "at_work": "at equal work", "end": "at the end"}
"""Columns of means, in the order in which they rank the recipes."""
ENDS = ("", "_low", "_high")
UNKNOWN = Interval(math.nan, math.nan, math.nan)
NOTES = (
    "Means are over re-runs of each recipe's best configuration. Validation data choose it, and test data "
    "judge it. The order of means is no test; `ahf compare` tests.",
    "At a cost the last evaluation before it counts, and the last value of a run that ended before. A mean "
    "is unknown, and comes last, where fewer than half of the runs had been evaluated.",
    "Draws to a target: 1/p, the expected number of random draws until one reaches it at an evaluation.",
)


@dataclass(frozen=True)
class Group:
    """The rows of studies with equal task, length, evaluation, search and code, the best first."""

    title: str
    studies: tuple[str, ...]
    metric: Column
    rows: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...]

    @property
    def text(self) -> pd.DataFrame:
        """The rows for readers."""
        rows, first = self.rows, self.rows[0]
        names = ("recipe", "study", "draws") if len(self.studies) > 1 else ("recipe", "draws")
        shown = {name: [str(row[name]) for row in rows] for name in names}
        shown["trained, 95 %"] = [within(row, "share_trained", 2) for row in rows]
        seconds, work = (short(first[f"{cost}_budget"]) for cost in ("seconds", "work"))
        for head, name in zip((f"at {seconds} s", f"at work {work}", "at the end"), PLACES, strict=True):
            known = [not math.isnan(row[name]) for row in rows]
            cells = [within(row, name, 3, fixed=not self.metric.log) for row in rows]
            means = [cell if has else "unknown" for has, cell in zip(known, cells, strict=True)]
            shown[f"{head}, 95 %"] = means
        draws = [within(row, "attempts", 1) for row in rows]
        shown[f"draws to {number(first['target'], 3)}, 95 %"] = draws
        return pd.DataFrame({**shown, "seeds": [str(row["seeds"]) for row in rows]})


@dataclass(frozen=True)
class Leaderboard:
    """Groups of recipes; studies that are left out and faults of files, one line each."""

    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    title = "Leaderboard of recipes"
    notes = NOTES

    @property
    def numbers(self) -> pd.DataFrame:
        """All rows, with the number and the title of their group."""
        rows = ({"group": n, "task": g.title, **row} for n, g in enumerate(self.groups, 1) for row in g.rows)
        return pd.DataFrame(rows)

    @property
    def document(self) -> dict[str, Any]:
        """The numbers with their intervals, as plain data."""
        groups = [{"task": g.title, "studies": g.studies, "notes": g.notes} for g in self.groups]
        lines = {"notes": self.notes, "left_out": self.left_out, "problems": self.problems}
        return {"groups": groups, "rows": self.numbers.to_dict("records"), **lines}


def leaderboard(
    studies: Mapping[str, Study], budgets: Mapping[str, float] | None = None, target: float | None = None
) -> Leaderboard:
    """Return the leaderboard of studies by label; a study that cannot be read hides no other.

    Studies share a group if task, training, search, metrics, code, versions and numerical path agree.

    Args:
        studies: by label.
        budgets: by cost, `work` or `seconds`; default: the least median total of a recipe's re-runs.
        target: value that a draw must reach; default: 1 % short of the best mean at the end.
    """
    found: dict[str, StudyData] = {}
    left_out = []
    for label, study in studies.items():
        try:
            why = _unfit(study.manifest())
            if not why:
                data = read_study(study)
                why = _unfinished(data)
        except AhfError as error:
            why = f"it cannot be read: {'; '.join(error.lines)}"
        if why:
            left_out.append(f"{label}: {why}")
        else:
            found[label] = data
    groups = tuple(_group(own, budgets or {}, target) for own in _alike(found))
    problems = tuple(f"{label}: {line}" for label, data in found.items() for line in data.problems)
    return Leaderboard(groups, tuple(left_out), problems)


def _unfit(manifest: Mapping[str, Any]) -> str:
    """Return why the plan of a study has no place on a leaderboard, or ''."""
    search = manifest.get("identity", {}).get("search", {})
    if (design := search.get("design", "paper")) != "fair":
        return f"its design is {design}, not fair"
    objective = search.get("objective", "train_loss")
    return "" if objective.startswith("validation_") else f"it chose by {objective}, not by validation data"


def _unfinished(data: StudyData) -> str:
    """Return why the trials of a study do not suffice, or ''."""
    if data.missing:
        return "; ".join(["it is not finished", *data.missing, *data.problems])
    if not data.independent:
        return "its draws depend on each other"
    return "" if len(data.reruns) else "it has no re-runs"


def _alike(found: Mapping[str, StudyData]) -> list[dict[str, StudyData]]:
    """Return the studies in groups that agree in the conditions of a mean."""
    groups: list[dict[str, StudyData]] = []
    for label, data in found.items():
        same = (own for own in groups if all(_agree(data, other) for other in own.values()))
        if (group := next(same, None)) is None:
            groups.append(group := {})
        group[label] = data
    return groups


def _agree(*both: StudyData) -> bool:
    parts = [[data.identity.get(key) for key in ("task", "train", "search")] for data in both]
    keys = {
        json.dumps([*part, data.metrics.curve_columns, data.metrics.baselines], sort_keys=True)
        for part, data in zip(parts, both, strict=True)
    }
    return len(keys) == 1 and not code([m for data in both for m in data.manifests.values()])


def _group(studies: Mapping[str, StudyData], budgets: Mapping[str, float], target: float | None) -> Group:
    data, many = pool(studies), len(studies) > 1
    place = {f"{k}/{n}" if many else n: (k, n) for k, own in studies.items() for n in own.recipes}
    again = same_reruns(data) & same_reruns(data, "search") if many else set()
    twice = {b: a for a, b in (sorted(pair, key=list(place).index) for pair in again if len(pair) == 2)}
    metric, metrics = data.metrics.headline, data.metrics
    done = data.rerun_curves[data.rerun_curves["status"] != "failed"]
    unclear = _unclear_seconds(data)
    amounts = {cost: budgets.get(cost, _least(done, cost)) for cost in ("seconds", "work")}
    amounts |= {"seconds": math.nan} if unclear else {}
    draws = _by_recipe(final_table(data.trials, data.planned, metrics).drop_duplicates("recipe"))
    ends = _by_recipe(rerun_table(data.trials, data.reruns, list(place), data.objective, metrics).numbers)
    target = _near([end[metric.column] for end in ends.values()], metric) if target is None else target
    met = _by_recipe(target_table(data.curves, list(place), target, metric).numbers)
    rows: list[dict[str, Any]] = []
    for name in (name for name in place if name not in twice):
        (label, recipe), draw, end = place[name], draws[name], ends.get(name, {})
        row: dict[str, Any] = {"study": label, "source": str(studies[label].study.folder), "recipe": recipe}
        row |= {"metric": metric.column, "draws": sum(draw[what.replace(" ", "_")] for what in OUTCOMES)}
        row |= {key: draw[key] for key in ("trained", *(f"share_trained{e}" for e in ENDS))}
        row |= {"seeds": end.get("n", 0), "seeds_trained": end.get("trained", 0)}
        for cost, at in amounts.items():
            own, value = done[done["recipe"] == name], UNKNOWN
            if len(own) and not math.isnan(at):
                value = _interval(along(own, cost, np.array([at]), metrics)[0], metric.column)
            value = value.without_ends() if two_clusters(row["seeds_trained"], row["seeds"]) else value
            row |= {f"{cost}_budget": at, **spread_interval(f"at_{cost}", value)}
        row |= spread_interval("end", _interval(end, metric.column) if end else UNKNOWN)
        share, low, high = UNKNOWN if math.isnan(target) else _interval(met[name], "share")
        attempts = Interval(*(math.inf if p == 0 else 1 / p for p in (share, high, low)))
        rows.append(row | {"target": target, "met": met[name]["met"]} | spread_interval("attempts", attempts))
    sign = -1 if metric.better == "higher" else 1
    rows.sort(key=lambda row: [math.inf if math.isnan(row[name]) else sign * row[name] for name in PLACES])
    notes = (
        data.cost_words.sentences,
        *([unclear] if unclear else []),
        *(f"{b} is the same as {a}, trial by trial, and has no row." for b, a in twice.items()),
        *(f"{label}: {ONE_SEED}" for label, own in studies.items() if own.one_seed),
        *(f"Conditions: {line}." for line in differences(data)),
    )
    return Group(_title(data, studies), tuple(studies), metric, rows, notes)


def _title(data: StudyData, studies: Iterable[str]) -> str:
    task = data.identity.get("task", {})
    names = [task.get(key) or "?" for key in ("model", "data", "split", "batch_size")]
    said = "{} on {}, split {}, batch {}".format(*names)
    loss, length = task.get("loss", "cross_entropy"), length_of(data.identity.get("train", {}))
    label = data.metrics.headline.label.capitalize()
    return f"{label}: {said}, {loss}, {length}; {', '.join(studies)}"


def _by_recipe(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(row["recipe"]): {str(k): v for k, v in row.items()} for row in table.to_dict("records")}


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(*(float(row[name + end]) for end in ENDS))


def _least(done: pd.DataFrame, cost: str) -> float:
    """Return the largest cost that half the re-runs of each recipe reach."""
    amounts = budgets_of(done, cost)
    return float(amounts[-1]) if len(amounts) else math.nan


def _near(means: Sequence[float], metric: Column) -> float:
    """Return the value that is 1 % short of the best mean, NaN without a mean."""
    known = pd.Series(means, dtype=float)
    return float(NEAR * known.max() if metric.better == "higher" else known.min() / NEAR)


def _unclear_seconds(data: StudyData) -> str:
    """Return a sentence where seconds are of several machines or numerical paths, or ''."""
    sessions = [session for m in data.manifests.values() for session in m.get("sessions", [])]
    records = [costs.measured for costs in data.costs] or sessions
    keys = ("device", "host", "numerics", *(() if data.costs else ("threads",)))
    places = {", ".join(f"{key} {record.get(key) or '?'}" for key in keys) for record in records}
    if len(places) < 2:
        return ""
    return f"Seconds are unknown, since they are of several machines or paths: {'; '.join(sorted(places))}."


def drawing(board: Leaderboard) -> Drawing:
    """Return a drawing of the means with their intervals, one panel a group."""
    looks = styles(row["recipe"] for group in board.groups for row in group.rows)
    fills = dict(zip(PLACES, ("full", "left", "none"), strict=True))
    caption = [
        "Means over re-runs of the best configuration with new seeds, and their 95 % intervals, none for two "
        "clusters. The order is that at equal seconds. A mean that is unknown is not drawn."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        for axes, group in zip(marks.grid(figure, theme, len(board.groups)), board.groups, strict=True):
            rows = group.rows[::-1]
            for height, row in enumerate(rows):
                look = looks[row["recipe"]]
                for (name, fill), shift in zip(fills.items(), (0.22, 0, -0.22), strict=True):
                    ends, y = [row[f"{name}_low"], row[f"{name}_high"]], height + shift
                    axes.plot(ends, [y, y], color=look.color, linestyle=look.line)
                    kind: Any = {"fillstyle": fill, "markerfacecoloralt": "white"}
                    axes.plot(row[name], y, look.marker, color=look.color, **kind)
                    if axes is figure.axes[0] and height == 0:
                        axes.plot([], [], "o", color="0.3", label=PLACES[name], **kind)
            names = [f"{r['recipe']}\n{r['study']}" if len(group.studies) > 1 else r["recipe"] for r in rows]
            axes.set_yticks(range(len(rows)), names)
            axes.set_ylim(-0.6, len(rows) - 0.4)
            axes.grid(False, axis="y")
            axes.set_xlabel(marks.labelled(group.metric, theme))
            title = "\n".join(textwrap.wrap(group.title.partition(": ")[2], 46))
            axes.set_title(title, fontsize="small", parse_math=False)
            if group.metric.log:
                axes.set_xscale("log")
            else:
                axes.xaxis.set_major_locator(MaxNLocator(5))
        marks.legend(figure, theme, points=True)

    size = max(0.6, 0.13 * max(len(group.rows) for group in board.groups) + 0.35)
    return Drawing("leaderboard", board.title, board.numbers, caption, draw, len(board.groups), size)
