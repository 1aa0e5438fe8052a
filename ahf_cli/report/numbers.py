"""The numbers of committed studies, as texts with their intervals, for the templates of docs and README."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ahf_cli.experiment.config import read_yaml
from ahf_cli.experiment.statistics import mean_interval, wilson_interval
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.figures import Choices
from ahf_cli.report.store import trials_frame
from ahf_cli.report.study_data import StudyData, load_study
from ahf_cli.report.tables.metrics import METRICS, at_chance
from ahf_cli.report.tables.text import number


class Recipe:
    """The numbers of one recipe in one study."""

    def __init__(self, data: StudyData, comparison: Comparison, name: str):
        self.name = name
        self.trials = data.trials[data.trials["recipe"] == name]
        self.again = data.reruns[data.reruns["recipe"] == name]
        self._chance = data.chance
        self._curves = data.curves[data.curves["recipe"] == name]
        self._finals = comparison.tables["final_values"].numbers
        reruns = comparison.tables.get("reruns")
        self._reruns = reruns.numbers.set_index("recipe") if reruns is not None else pd.DataFrame()

    @property
    def n(self) -> int:
        """Finished trials."""
        return int((self.trials["status"] != "failed").sum())

    @property
    def diverged(self) -> int:
        """Trials that diverged."""
        return int((self.trials["status"] == "diverged").sum())

    @property
    def stalled(self) -> int:
        """Trials that stood still."""
        return int(((self.trials["status"] == "ok") & self.trials["stalled"].astype(bool)).sum())

    @property
    def trained(self) -> int:
        """The others."""
        return self.n - self.diverged - self.stalled

    @property
    def counts(self) -> str:
        """How many trained, stood still and diverged."""
        return f"{self.trained} / {self.stalled} / {self.diverged}"

    @property
    def again_counts(self) -> str:
        """How many re-runs of the best configuration trained, did not, and diverged."""
        again: Recipe = object.__new__(Recipe)
        again.__dict__ |= {**self.__dict__, "trials": self.again}
        return again.counts

    @property
    def loss(self) -> str:
        """Mean final training loss over all trials with its 95 % interval, no loss above that of chance."""
        return interval(*mean_interval(self._losses()))

    def loss_minus(self, published: float) -> str:
        """How far that mean is above a published value, with its sign."""
        return f"{self._losses().mean() - published:+.2f}"

    def _losses(self) -> NDArray[np.floating[Any]]:
        return self.values("train_loss").clip(max=self._chance.loss)

    def values(self, metric: str) -> NDArray[np.floating[Any]]:
        """Final values of the finished trials; diverged ones at chance."""
        done = self.trials[self.trials["status"] != "failed"]
        return at_chance(done, METRICS[metric], self._chance).to_numpy(float)

    def quartiles(self, metric: str) -> tuple[float, float]:
        """The final values that a quarter of the trials are below and above."""
        low, high = np.quantile(self.values(metric), [0.25, 0.75])
        return float(low), float(high)

    @property
    def blown(self) -> int:
        """Trials that ended finite and above the loss that they began with."""
        first = self._curves[self._curves["step"] == 0].set_index("trial")["train_loss"]
        ends = self.trials[self.trials["status"] == "ok"].set_index("trial")["train_loss"]
        return int((ends > first.reindex(ends.index)).sum())

    @property
    def least_share(self) -> float:
        """Lower end of Wilson's interval for the share that trained."""
        return float(wilson_interval(self.trained, self.n)[1])

    @property
    def share_trained(self) -> str:
        """The share that trained, with Wilson's interval."""
        return interval(*wilson_interval(self.trained, self.n), digits=2)

    def where(self, query: str) -> Recipe:
        """Return the trials that a query of pandas selects; hyperparameters are `lr`, `damping`, ….

        Their counts, shares and ranges; means are of all trials, and not to be had of some.
        """
        own = self.trials.rename(columns=lambda c: str(c).removeprefix("params."))
        chosen: Recipe = object.__new__(Recipe)
        chosen.__dict__ |= {
            **self.__dict__,
            "trials": self.trials[own.eval(query)],
            "_finals": self._finals[:0],
        }
        return chosen

    @property
    def accuracy(self) -> str:
        """Mean final test accuracy over all trials with its 95 % interval; diverged ones at chance."""
        return self.mean("test_accuracy")

    def mean(self, metric: str) -> str:
        """Mean final value over all trials with its 95 % interval; diverged ones at chance."""
        row = self._final(metric)
        return interval(row["mean"], row["mean_low"], row["mean_high"])

    def band(self, metric: str) -> str:
        """Mean ± standard error over all trials, as the paper draws it; diverged ones at chance."""
        row = self._final(metric)
        mean, error = row["mean"], row["standard_error"]
        if abs(mean) >= 1000:
            return f"{mean:.1e} ± {error:.1e}"
        return f"{number(mean, 3, fixed=True)} ± {number(error, 3, fixed=True)}"

    def minus(self, metric: str, published: float) -> str:
        """How far the mean is above a published value, with its sign."""
        return f"{self._final(metric)['mean'] - published:+.2f}"

    def _final(self, metric: str) -> pd.Series[Any]:
        found = self._finals
        own = (found["recipe"] == self.name) & (found["metric"] == METRICS[metric].label)
        return found[own & (found["diverged_trials"] == "at chance")].iloc[0]

    @property
    def best(self) -> float:
        """Test accuracy of the trial with the best value."""
        return float(self.trials.sort_values(["value", "trial"]).iloc[0]["test_accuracy"])

    def above(self, accuracy: float) -> str:
        """Trials that ended above a test accuracy, of how many, and their share with Wilson's interval."""
        done = self.trials[self.trials["status"] != "failed"]
        count = int((done["test_accuracy"] > accuracy).sum())  # NaN, that of a diverged trial, is not
        return f"{count} of {len(done)}, {interval(*wilson_interval(count, len(done)), digits=2)}"

    @property
    def most(self) -> float:
        """Largest final test accuracy."""
        return float(self.trials["test_accuracy"].max())

    @property
    def range(self) -> str:
        """Least and largest final test accuracy of the trials that did not diverge."""
        own = self.trials[self.trials["status"] == "ok"]["test_accuracy"].astype(float)
        return f"{own.min():.3f} to {own.max():.3f}" if len(own) else "–"

    @property
    def steps(self) -> int:
        """Steps of a whole trial."""
        return int(self._curves["step"].max())

    @property
    def work(self) -> float:
        """Median over trials of the gradients and curvature products of a whole trial."""
        return float(self._curves.groupby("trial")["work"].max().median())

    @property
    def gap(self) -> str:
        """Mean of test loss − training loss at the end, over trials that trained, with its 95 % interval."""
        own = self.trials[(self.trials["status"] == "ok") & ~self.trials["stalled"].astype(bool)]
        values = (own["test_loss"] - own["train_loss"]).to_numpy(float)
        return f"{interval(*mean_interval(values), sign=True)}, n = {len(values)}" if len(values) > 1 else "–"

    @property
    def rerun_accuracy(self) -> str:
        """Mean test accuracy of the best configuration with new seeds, with its 95 % interval."""
        if self.name not in self._reruns.index:
            return "–"
        row = self._reruns.loc[self.name]
        ends = (float(row[f"test_accuracy{end}"]) for end in ("_low", "_high"))  # type: ignore[arg-type]
        return interval(float(row["test_accuracy"]), *ends)  # type: ignore[arg-type]

    @property
    def reruns(self) -> int:
        """Re-runs of the best configuration."""
        return len(self.again)


class Study:
    """The numbers of one study."""

    def __init__(self, folder: Path):
        self.data = load_study(folder)
        self.comparison = Comparison(self.data, Choices(attribute=True))
        self.name = folder.name

    @property
    def recipes(self) -> list[Recipe]:
        """All recipes, in the order of the study."""
        return [self[name] for name in self.data.recipes]

    def __getitem__(self, name: str) -> Recipe:
        return Recipe(self.data, self.comparison, name)

    @property
    def steps(self) -> int:
        """Steps of a whole trial of most recipes."""
        return int(np.median([recipe.steps for recipe in self.recipes]))

    @property
    def trials_each(self) -> str:
        """Finished trials of a recipe, or the least and the most of them where recipes differ."""
        least, most = (f({r.n for r in self.recipes}) for f in (min, max))
        return str(most) if least == most else f"{least} to {most}"

    @property
    def prerun_trials(self) -> int:
        """Finished trials of the study's pre-run."""
        return len(trials_frame(self.data.sources[0][1].prerun))

    def proposal(self, hyperparameter: str) -> str:
        """The range that the study's pre-run proposes."""
        low, high = self.proposed[hyperparameter]
        return f"[{low:.2g}, {high:.2g}]"

    @property
    def verdict(self) -> list[str]:
        """The verdict, sentence by sentence."""
        return list(self.comparison.verdict.lines())

    @property
    def hours(self) -> float:
        """Training time of all trials and re-runs together, evaluation excluded, in hours."""
        seconds = self.data.trials["seconds"].sum() + self.data.reruns["seconds"].sum()
        return float(seconds) / 3600

    def _change(self, base: str, other: str) -> pd.Series[Any]:
        table = self.comparison.tables["attribution"].numbers
        return table[(table["before"] == base) & (table["after"] == other)].iloc[0]

    def choice(self, base: str, other: str) -> str:
        """The one choice in which two recipes differ."""
        row = self._change(base, other)
        return f"{row['key']}: {row['old']} → {row['new']}"

    def paired(self, base: str, other: str, metric: str = "test_accuracy") -> str:
        """Mean difference other − base over trials with equal hyperparameters, with its 95 % interval."""
        row = self._change(base, other)
        return interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"], sign=True)

    def matters(self, base: str, other: str, metric: str = "test_accuracy") -> bool:
        """Whether the interval of that difference leaves out zero."""
        row = self._change(base, other)
        return bool(row[f"{metric}_low"] > 0 or row[f"{metric}_high"] < 0)

    def _rerun_pair(self, base: str, other: str, metric: str) -> tuple[pd.Series[Any], float]:
        """Return the row of a pair's re-runs, and the sign that makes its difference other − base."""
        table = self.comparison.tables["rerun_pairs"].numbers
        own = table[table["metric"] == metric]
        row, sign = own[(own["a"] == base) & (own["b"] == other)], -1.0
        if not len(row):
            row, sign = own[(own["a"] == other) & (own["b"] == base)], 1.0
        return row.iloc[0], sign

    def rerun_difference(self, base: str, other: str, metric: str = "test_accuracy") -> str:
        """Mean difference other − base over the best of each with equal seeds, its 95 % interval and n."""
        found, sign = self._rerun_pair(base, other, metric)
        low, high = sorted(sign * float(found[f"difference{end}"]) for end in ("_low", "_high"))
        return f"{interval(sign * float(found['difference']), low, high, sign=True)}, n = {found['pairs']}"

    def rerun_p(self, base: str, other: str, metric: str = "test_accuracy") -> float:
        """p of that difference by the paired permutation test, after Holm's correction over metrics."""
        return float(self._rerun_pair(base, other, metric)[0]["p_holm"])

    def last_damping(self, trials: Recipe) -> tuple[float, float]:
        """Least and largest damping in the last step of some trials of a recipe."""
        steps = self.data.steps
        own = steps[(steps["recipe"] == trials.name) & steps["trial"].isin(trials.trials["trial"])]
        last = own.sort_values("step").groupby("trial")["damping"].last()
        return float(last.min()), float(last.max())

    def share_of_steps(self, recipe: str, query: str, trials: Recipe | None = None) -> float:
        """Share that a query of pandas selects of all steps of a recipe's trials, or of some of them."""
        steps = self.data.steps
        own = steps[steps["recipe"] == recipe]
        if trials is not None:
            own = own[own["trial"].isin(trials.trials["trial"])]
        return len(own.query(query)) / len(own)

    @property
    def proposed(self) -> dict[str, tuple[float, float]]:
        """The ranges that the study's pre-run proposes, by hyperparameter."""
        folder = self.data.sources[0][1].prerun.folder
        (found,) = read_yaml(folder / "ranges.yaml").values()
        return {name: (float(r["low"]), float(r["high"])) for name, r in found.items()}

    def median_step(self, recipe: str, column: str) -> float:
        """Median over all steps of all trials of a column of steps.csv.gz."""
        steps = self.data.steps
        values = steps[steps["recipe"] == recipe][column].to_numpy(float)
        return float(np.median(values[np.isfinite(values)]))

    def mean_accuracy(self, recipe: str) -> float:
        """Mean test accuracy over all trials, with diverged ones at chance."""
        own = self.data.trials[self.data.trials["recipe"] == recipe]
        return float(at_chance(own, METRICS["test_accuracy"], self.data.chance).mean())

    def mean_rerun(self, recipe: str) -> float:
        """Mean test accuracy of the best configuration with new seeds, with diverged runs at chance."""
        own = self.data.reruns[self.data.reruns["recipe"] == recipe]
        return float(at_chance(own, METRICS["test_accuracy"], self.data.chance).mean())


def interval(mean: float, low: float, high: float, sign: bool = False, digits: int = 3) -> str:
    """Write a number with its interval, where it has one: equal numbers have none."""
    written = (number(float(x), digits, fixed=True) for x in (mean, low, high))
    head, low_end, high_end = (text if text.strip("-0.") else text.lstrip("-") for text in written)
    head = f"+{head}" if sign and float(head) > 0 else head
    return head if math.isnan(low) else f"{head} [{low_end}, {high_end}]"


@cache
def load(folder: Path) -> Study:
    """Return the numbers of a study, which several templates may ask for."""
    return Study(folder)
