"""Numbers of one study, as values and as text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.cli.compare import Request, comparison
from ahf_cli.config.strict_yaml import parse_yaml
from ahf_cli.report.audit import of_study
from ahf_cli.report.canvas import Drawing
from ahf_cli.report.exhibits import figures
from ahf_cli.search.prerun import Estimate, estimate_sigma, estimate_smoothness
from ahf_cli.study.frames import trials_frame
from docs.findings.beside import Beside, alike, changes_of, of_more, wide
from docs.findings.interval import interval
from docs.findings.jumps import Jumps
from docs.findings.recipe import Recipe


class Study:
    """Numbers of one study."""

    def __init__(self, folder: Path):
        self.comparison = comparison(Request((str(folder),), attribute=True))
        self.data = self.comparison.data
        self.name = folder.name

    @cache  # noqa: B019  # studies live as long as the documents are filled in
    def drawing(self, name: str) -> Drawing:
        """Return a figure as `ahf compare --attribute` draws it."""
        made = figures()[name](self.data, self.comparison.choices)
        if not isinstance(made, Drawing):
            raise ValueError(f"{self.name} has no figure {name}: {made}")
        return made

    def caption(self, name: str) -> str:
        """Return the caption of a figure as one line of Markdown."""
        return " ".join(self.drawing(name).caption).replace("_", "\\_").replace("*", "\\*")

    @property
    def recipes(self) -> list[Recipe]:
        """Recipes with finished trials, in the order of the study."""
        return [recipe for recipe in map(self.__getitem__, self.data.recipes) if recipe.n]

    def __getitem__(self, name: str) -> Recipe:
        return Recipe(self.data, self.comparison, name)

    @property
    def steps(self) -> int:
        """Steps of a complete trial of most recipes."""
        return int(np.median([recipe.steps for recipe in self.recipes]))

    @property
    def trials_each(self) -> str:
        """Number of finished trials a recipe, or the least and the largest number."""
        least, most = (f({r.n for r in self.recipes}) for f in (min, max))
        return str(most) if least == most else f"{least} to {most}"

    @property
    def prerun_trials(self) -> int:
        """Number of finished trials of the study's pre-run."""
        return len(trials_frame(self.data.sources[0][1].prerun))

    @property
    def prerun_diverged(self) -> int:
        """Number of trials of the study's pre-run that diverged."""
        return int((trials_frame(self.data.sources[0][1].prerun)["status"] == "diverged").sum())

    def proposal(self, hyperparameter: str) -> str:
        """Return the range that the study's pre-run proposes."""
        low, high = self.proposed[hyperparameter]
        return f"[{low:.2g}, {high:.2g}]"

    @property
    def verdict(self) -> list[str]:
        """The verdict as paragraphs."""
        return list(self.comparison.verdict.lines())

    def _change(self, base: str, other: str) -> pd.Series[Any]:
        table = self.comparison.tables["attribution"].numbers
        return table[(table["before"] == base) & (table["after"] == other)].iloc[0]

    def choice(self, base: str, other: str) -> str:
        """Return the only choice in which two recipes differ."""
        row = self._change(base, other)
        return f"{row['key']}: {row['old']} → {row['new']}"

    def paired(self, base: str, other: str, metric: str = "test_accuracy") -> str:
        """Return the mean difference other − base over equal hyperparameters, with its 95 % interval.

        It has no interval if the trials of a recipe have two clusters.
        """
        row = self._change(base, other)
        return interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"], sign=True)

    def gained(self, base: str, other: str) -> str:
        """Return the pairs that gained and lost training by a change, and McNemar's p."""
        row = self._change(base, other)
        return f"{row['gained']} and {row['lost']}, {row['p_trained']:.1g}"

    def p_gained(self, base: str, other: str) -> float:
        """Return McNemar's p of a change."""
        return float(self._change(base, other)["p_trained"])

    def _rerun_pair(self, base: str, other: str, metric: str) -> tuple[pd.Series[Any], float]:
        """Return the row of a pair's re-runs, and the sign of its difference as other − base."""
        table = self.comparison.tables["rerun_pairs"].numbers
        own = table[table["metric"] == metric]
        row, sign = own[(own["a"] == base) & (own["b"] == other)], -1.0
        if not len(row):
            row, sign = own[(own["a"] == other) & (own["b"] == base)], 1.0
        return row.iloc[0], sign

    def rerun_difference(self, base: str, other: str, metric: str = "test_accuracy") -> str:
        """Return the mean difference other − base over re-runs with equal seeds, its 95 % interval and n."""
        found, sign = self._rerun_pair(base, other, metric)
        low, high = sorted(sign * float(found[f"difference{end}"]) for end in ("_low", "_high"))
        return f"{interval(sign * float(found['difference']), low, high, sign=True)}, n = {found['pairs']}"

    def rerun_means(self, metrics: list[str]) -> pd.DataFrame:
        """Return means of metrics over the re-runs of each recipe."""
        return self.data.reruns.groupby("recipe")[metrics].mean()

    def rerun_mean_at(self, recipe: str, step: int, metric: str = "test_accuracy") -> float:
        """Return the mean over the re-runs of a recipe at an evaluation."""
        own = self.data.rerun_curves
        return float(own.loc[(own["recipe"] == recipe) & (own["step"] == step), metric].mean())

    def rerun_reaches(self, recipe: str, value: float, metric: str = "test_accuracy") -> int:
        """Return the first evaluation at which the mean over the re-runs of a recipe is at least a value."""
        own = self.data.rerun_curves.query("recipe == @recipe").groupby("step")[metric].mean()
        return int(own.index[own >= value][0])

    def chosen_ahead(self, one: str, other: str) -> float:
        """Return P(the chosen draw of `one` has the higher test accuracy) over new searches.

        A new search draws as many trials as there are, with replacement, and validation loss chooses among
        them.  So the draw of rank r of n is chosen with the probability of the least of n numbers.
        """
        ordered = [self[name].trials.sort_values("value") for name in (one, other)]
        a, b = (own["test_accuracy"].astype(float).fillna(-np.inf).to_numpy() for own in ordered)
        wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
        chances = [-np.diff((np.arange(len(v), -1, -1) / len(v)) ** len(v)) for v in (a, b)]
        return float(chances[0] @ wins @ chances[1])

    def rerun_p(self, base: str, other: str, metric: str = "test_accuracy") -> float:
        """Return p of the re-runs' difference, with Holm's correction over all pairs and metrics."""
        return float(self._rerun_pair(base, other, metric)[0]["p_holm"])

    def ahead(self, base: str, other: str, metric: str = "test_accuracy") -> bool:
        """Return whether `other` is ahead of `base` in the re-runs after Holm's correction.

        False where the rules of `ahf compare` allow no claim.
        """
        if not self.comparison.verdict.claim:
            return False
        row, sign = self._rerun_pair(base, other, metric)
        lower = self.data.metrics.column(metric).better == "lower"
        return bool(row["p_holm"] < 0.05 and (sign * row["difference"] > 0) != lower)

    @property
    def components(self) -> dict[str, dict[str, str]]:
        """Variance components of the headline metric by recipe, as `ahf compare` prints them."""
        (text,) = self.comparison.tables["components"].texts.values()
        own = text[text["metric"] == self.data.metrics.headline.label]
        return {row["recipe"]: {str(c): str(v) for c, v in row.items()} for row in own.to_dict("records")}

    def beside(self, recipe: str, step: int, metric: str = "test_accuracy") -> pd.Series[Any]:
        """Return a recipe's mean at a step beside the published one: a row of the table `published`."""
        table = self.comparison.tables["published"].numbers
        own = table[(table["recipe"] == recipe) & (table["metric"] == metric) & (table["step"] == step)]
        return own.iloc[0]

    @cache  # noqa: B019  # as above
    def moved(self, recipe: str) -> Beside:
        """Return the trials of a recipe that did not stand still, beside its published curve."""
        trials = self[recipe].where("outcome != 'stood still'").trials["trial"]
        own = (self.data.curves["recipe"] == recipe) & self.data.curves["trial"].isin(trials)
        return Beside(self.data.curves[own], self.comparison.choices.published[recipe], self.data.metrics)

    def against(self, recipe: str, source: str) -> Beside:
        """Return all trials of a recipe beside a published curve, such as "motokawa_2020.csv/HF"."""
        return Beside(self.data.curves[self.data.curves["recipe"] == recipe], source, self.data.metrics)

    def fluctuates_as(self, recipe: str, first: int) -> float:
        """Return `alike` of the mean of all trials of a recipe, from a step on."""
        own = self.data.curves[self.data.curves["recipe"] == recipe]
        changes = changes_of(wide(own, self.data.metrics.headline, first))
        return alike(changes, changes.mean(axis=1))

    def seventy_fluctuate_as(self, recipe: str, first: int) -> float:
        """Return `fluctuates_as` for 70 trials with the same correlation."""
        return of_more(self.fluctuates_as(recipe, first), self[recipe].n, 70)

    def prerun_sigma(self, norm: str, last: int) -> str:
        """Return the range of σ by the pre-run's steps up to `last`, in a norm."""
        steps, _ = self.data.prerun
        each = [own for _, own in steps[steps["step"] <= last].groupby("trial")]
        norms = [own[f"direction_{norm}"].to_numpy(float) for own in each]
        found = estimate_sigma(norms, norm, self.prerun_diverged)
        return f"[{found.range.low:.3g}, {found.range.high:.3g}]"

    def prerun_ratio(self, quantity: str) -> float:
        """Return the median over steps of the pre-run's mean of a quantity, divided by the published one."""
        table = self.drawing("published_prerun").table
        own = table[table["quantity"] == quantity]
        return float((own["centre"] / own["published"]).median())

    def share_of_steps(
        self, recipe: str, query: str, trials: Recipe | None = None, first: int | None = None
    ) -> float:
        """Return the share of a recipe's steps that a query selects; `trials` and `first` limit the steps."""
        steps = self.data.steps
        own = steps[steps["recipe"] == recipe]
        if trials is not None:
            own = own[own["trial"].isin(trials.trials["trial"])]
        if first is not None:
            own = own[own["step"] <= first]
        return len(own.query(query)) / len(own)

    def radius_share(self, recipe: str) -> float:
        """Return the median over trials of the share of steps whose update the radius limits.

        Raises:
            IndexError: the study has no steps of the recipe.
        """
        table = self.comparison.tables["limits"].numbers
        own = table[(table["recipe"] == recipe) & (table["limit"] == "clip at the radius")]
        return float(own["median"].iloc[0])

    def held(self, recipe: str, hypothesis: str) -> float:
        """Return the mean share of steps in which a hypothesis of Theorem 1 held, as `ahf audit` has it."""
        study = self.data.sources[0][1]
        table, _, _ = of_study(study, study.finished(recipe))
        return float(table[hypothesis].mean())

    def jumps(self, recipe: str) -> Jumps:
        """Return the first step of each trial whose ‖δ‖ is at least ten times the norm before."""
        steps = self.data.steps
        return Jumps.of(steps[steps["recipe"] == recipe])

    def measured(self, recipe: str, norm: str = "l2") -> dict[str, Estimate]:
        """Return estimates of σ and L from the steps of a recipe's trials, as a pre-run makes them."""
        ok = self[recipe].where("status == 'ok'").trials["trial"]
        steps = self.data.steps
        own = steps[(steps["recipe"] == recipe) & steps["trial"].isin(ok)]
        each = [trial for _, trial in own.groupby("trial")]
        diverged = self[recipe].diverged
        return {
            "sigma": estimate_sigma([t[f"direction_{norm}"].to_numpy(float) for t in each], norm, diverged),
            "smoothness": estimate_smoothness(
                [t["smoothness_gradient"].to_numpy(float) for t in each], diverged
            ),
        }

    @property
    def proposed(self) -> dict[str, tuple[float, float]]:
        """Ranges that the study's pre-run proposes, by hyperparameter."""
        text = self.data.study.prerun.text("ranges.yaml")
        (found,) = parse_yaml(text or "", f"ranges.yaml of {self.name}").values()
        return {name: (float(r["low"]), float(r["high"])) for name, r in found.items()}

    def median_step(self, recipe: str, column: str) -> float:
        """Return the median over all steps of all trials of a column of steps.csv.gz."""
        steps = self.data.steps
        values = steps[steps["recipe"] == recipe][column].to_numpy(float)
        return float(np.median(values[np.isfinite(values)]))


@cache
def load(folder: Path) -> Study:
    """Return the numbers of a study; templates share the result."""
    return Study(folder)
