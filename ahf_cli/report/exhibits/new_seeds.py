"""Re-runs of the best configuration of each recipe with new seeds, the basis of a claim."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.plotting import Figure, MaxNLocator
from ahf_cli.report.shared import same_reruns
from ahf_cli.report.statistics.clusters import mean_of_all, two_clusters
from ahf_cli.report.statistics.interval import wilson_interval
from ahf_cli.report.statistics.pairs import cliffs_delta, holm, paired_difference, paired_permutation_test
from ahf_cli.report.study_data import StudyData, ranked
from ahf_cli.report.style import styles
from ahf_cli.report.text import Table, number, spread_interval, within
from ahf_cli.tasks.metrics import Column, Metrics


def best_trials(trials: pd.DataFrame, objective: str) -> pd.DataFrame:
    """Return the row of each recipe's best trial by recipe, the least value first."""
    done = ranked(trials).sort_values(["value", objective, "trial"])
    return done.drop_duplicates("recipe").set_index("recipe")


def rerun_table(
    trials: pd.DataFrame, reruns: pd.DataFrame, names: list[str], objective: str, metrics: Metrics
) -> Table:
    """Mean over the new seeds, and the luck of the search, which is its value − the mean of the re-runs.

    A positive luck in accuracy, or a negative luck in loss, is optimism of the search.
    """
    best = best_trials(trials, objective)
    rows = []
    for name in names:
        own = reruns[reruns["recipe"] == name]
        if not len(own):
            continue
        trained = int((own["outcome"] == "trained").sum())
        row: dict[str, object] = {"recipe": name, "n": len(own), "search_trial": best["trial"].get(name)}
        row["trained"] = trained
        row |= spread_interval("share_trained", wilson_interval(trained, len(own)))
        for column in dict.fromkeys([objective, *(m.column for m in metrics.shown)]):
            metric = metrics.column(column)
            values = at_baseline(own, metric).dropna().to_numpy(float)
            searched = float(best[column].get(name, np.nan))
            row |= spread_interval(column, mean_of_all(values, trained, len(own)).clipped(0, metric.top))
            row |= {f"{column}_search": searched, f"{column}_luck": searched - _mean(values)}
        rows.append(row)
    numbers = pd.DataFrame(rows)
    text: dict[str, object] = {"recipe": [r["recipe"] for r in rows]}
    text["trained"] = [f"{r['trained']} of {r['n']}" for r in rows]
    for column in dict.fromkeys([objective, metrics.headline.column]):
        label = column.replace("_", " ")
        text[f"{label}, 95 %"] = [within(row, column) for row in rows]
        text[f"luck in {label}"] = [number(float(str(row[f"{column}_luck"]))) for row in rows]
    title = "Re-runs of the best configuration with new seeds"
    return Table("reruns", numbers, {title: pd.DataFrame(text)})


def pairs_table(
    reruns: pd.DataFrame,
    names: list[str],
    metrics: Metrics,
    contrasts: Sequence[Sequence[str]] = (),
    same: Collection[frozenset[str]] = (),
) -> Table:
    """Each pair of recipes on the same new seeds: mean difference A − B, Cliff's delta, permutation p (Holm).

    Holm's correction is over all pairs and metrics, or over the contrasts that were named before the run.
    Then the other pairs have no p.  The mean difference of two clusters has no interval.
    Pairs in `same` are the same re-runs in two studies, and have no row.
    """
    rows = []
    drawn = [name for name in names if (reruns["recipe"] == name).any()]
    trained = {
        name: int((own["outcome"] == "trained").sum()) for name, own in reruns.groupby("recipe", sort=False)
    }
    sizes = reruns["recipe"].value_counts()
    named = {frozenset(pair) for pair in contrasts}
    compared = [pair for pair in combinations(drawn, 2) if frozenset(pair) not in same]
    for (a, b), metric in ((pair, m) for pair in compared for m in metrics.shown):
        both = _paired(reruns, a, b, metric)
        rng = np.random.default_rng(0)
        x, y = both[a].to_numpy(float), both[b].to_numpy(float)
        found = paired_difference(x, y)
        if any(two_clusters(trained[name], int(sizes[name])) for name in (a, b)):
            found = found.without_ends()
        tested = not named or frozenset((a, b)) in named
        rows.append(
            {"a": a, "b": b, "metric": metric.column, "pairs": len(both)}
            | {"trained_a": trained[a], "trained_b": trained[b]}
            | spread_interval("difference", found)
            | spread_interval("delta", cliffs_delta(x, y))
            | {"p": paired_permutation_test(x, y, rng) if tested else np.nan}
        )
    numbers = pd.DataFrame(rows, columns=_PAIR_COLUMNS if not rows else None)
    numbers["p_holm"] = holm(list(numbers["p"]))
    text = pd.DataFrame(
        {
            "pair": [f"{r.a} − {r.b}" for r in numbers.itertuples()],
            "metric": [metrics.column(m).label for m in numbers["metric"]],
            "pairs": numbers["pairs"].astype(str),
            "trained": [f"{r.trained_a}, {r.trained_b}" for r in numbers.itertuples()],
            "difference, 95 %": [within(row, "difference") for row in numbers.to_dict("records")],
            "Cliff's delta, 95 %": [within(row, "delta", 2) for row in numbers.to_dict("records")],
            "p (Holm)": [number(p, 3) for p in numbers["p_holm"]],
        }
    )
    family = f"the {len(named)} contrasts named before the run" if named else "all pairs"
    note = (
        "Paired by seed; two-sided sign-flip permutation test of the mean. Holm's correction over "
        f"{family} and metrics: {int(numbers['p'].notna().sum())} tests."
    )
    return Table("rerun_pairs", numbers, {"Pairs of recipes on the same new seeds": text}, note)


_PAIR_COLUMNS = [
    "a", "b", "metric", "pairs", "trained_a", "trained_b", "difference", "difference_low", "difference_high",
    "delta", "delta_low", "delta_high", "p",
]  # fmt: skip


def _paired(reruns: pd.DataFrame, a: str, b: str, metric: Column) -> pd.DataFrame:
    """Return the values of both recipes on common seeds, one row a seed, one column a recipe."""
    valued = reruns.assign(value=at_baseline(reruns, metric))
    sides = [valued[valued["recipe"] == name].set_index("seed")["value"].rename(name) for name in (a, b)]
    return pd.concat(sides, axis=1, join="inner").dropna()


def _mean(values: ArrayLike) -> float:
    x = np.asarray(values, dtype=float)
    return float(x.mean()) if len(x) else float("nan")


def reruns(
    trials: pd.DataFrame, again: pd.DataFrame, names: list[str], objective: str, metrics: Metrics
) -> Drawing | str:
    """Return a drawing of each re-run, their mean with its interval, and the value of the search."""
    done = again[again["status"] != "failed"] if len(again) else again
    drawn = [name for name in names if (done["recipe"] == name).any()]
    if not drawn:
        return "there are no re-runs of the best configurations"
    table = done[["recipe", "trial", "seed", "status", "outcome"]].assign(
        **{m.column: at_baseline(done, m) for m in metrics.shown}
    )
    best = best_trials(trials, objective)[[m.column for m in metrics.shown]].astype(float)
    seen: dict[Any, dict[Any, float]] = best.to_dict()
    looks = styles(names)
    caption = [
        "The best configuration of each recipe, trained again with new seeds, one point a seed "
        f"(n: {marks.counts(done, drawn)}). The bar is the mean with its 95 % interval, none for two "
        "clusters. ◇ is the value of the search, optimistic if it is better than the bar. ×: diverged, "
        f"{'drawn at chance' if metrics.guessing else 'without a value'}."
        + marks.cut_words(table, metrics.loss, drawn)
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, metric) in enumerate(zip(marks.grid(figure, theme, 2), metrics.shown, strict=True)):
            for row, name in enumerate(reversed(drawn)):
                own = table[table["recipe"] == name]
                look = looks[name]
                for status, marker in (("ok", look.marker), ("diverged", "x")):
                    some = own[own["status"] == status]
                    height = row + 0.1 + marks.spread(some["trial"], 0.14)
                    fill: Any = {"edgecolors": look.color, "facecolors": look.face} if status == "ok" else {}
                    axes.scatter(
                        some[metric.column], height, s=18, marker=marker, alpha=0.8, linewidths=1,
                        **(fill or {"color": look.color}),
                    )  # fmt: skip
                trained = int((own["outcome"] == "trained").sum())
                mean = mean_of_all(own[metric.column], trained, len(own))
                axes.plot([mean.low, mean.high], [row - 0.22] * 2, color=look.color, linewidth=3, alpha=0.55)
                axes.plot(mean.estimate, row - 0.22, "|", color="black", markersize=9, markeredgewidth=1.6)
                searched = seen[metric.column].get(name, float("nan"))
                axes.plot(searched, row - 0.22, "D", markersize=5, markerfacecolor="none", color=look.color)
            named = at == 0 or theme.stacked
            axes.set_yticks(range(len(drawn)), [*reversed(drawn)] if named else [""] * len(drawn))
            axes.set_ylim(-0.6, len(drawn) - 0.4)
            axes.grid(False, axis="y")
            axes.set_xlabel(f"final {marks.labelled(metric, theme)}")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if np.isinf(metric.top) and table[metric.column].max() > metric.edge:
                axes.set_xlim(0, metric.edge)

    size = max(0.6, 0.13 * len(drawn) + 0.35)
    return Drawing("reruns", "Re-runs of the best configuration", table, caption, draw, panels=2, height=size)


def pairs_of(data: StudyData) -> Table:
    """Return the pairs of a study's recipes; its contrasts decide the tests."""
    return pairs_table(data.reruns, data.recipes, data.metrics, data.contrasts, same_reruns(data))


def _reruns(data: StudyData) -> Table | None:
    if not len(data.reruns):
        return None
    return rerun_table(data.trials, data.reruns, data.recipes, data.objective, data.metrics)


def _pairs(data: StudyData) -> Table | None:
    return pairs_of(data) if len(data.reruns) else None


EXHIBIT = Exhibit(
    9,
    [lambda d, _: _reruns(d), lambda d, _: _pairs(d)],
    {"reruns": lambda d, _: reruns(d.trials, d.reruns, d.recipes, d.objective, d.metrics)},
)
