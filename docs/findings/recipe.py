"""Numbers of one recipe in one study, as values and as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ahf_cli.report.comparison import Comparison
from ahf_cli.report.outcomes import at_baseline
from ahf_cli.report.statistics.interval import mean_interval, wilson_interval
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import number
from ahf_cli.training.outcome import OUTCOMES
from docs.findings.interval import interval


class Recipe:
    """Numbers of one recipe in one study."""

    def __init__(self, data: StudyData, comparison: Comparison, name: str):
        self.name = name
        self.trials = data.trials[data.trials["recipe"] == name]
        self.again = data.reruns[data.reruns["recipe"] == name]
        self._metrics = data.metrics
        self._curves = data.curves[data.curves["recipe"] == name]
        self._finals = comparison.tables["final_values"].numbers
        reruns = comparison.tables.get("reruns")
        self._reruns = reruns.numbers.set_index("recipe") if reruns is not None else pd.DataFrame()

    @property
    def n(self) -> int:
        """Number of finished trials."""
        return int((self.trials["status"] != "failed").sum())

    def of(self, outcome: str) -> int:
        """Return the number of trials with an outcome."""
        return int((self.trials["outcome"] == outcome).sum())

    @property
    def seconds(self) -> float:
        """Median over trials of the seconds of a whole trial."""
        return float(self._curves.groupby("trial")["seconds"].max().median())

    @property
    def seconds_run(self) -> float:
        """Median over trials of the seconds of a whole trial, as it ran."""
        return float(self.trials["seconds"].median())

    @property
    def rerun_mean(self) -> float:
        """Mean test accuracy of the best configuration with new seeds."""
        return float(self._reruns.loc[self.name]["test_accuracy"])  # type: ignore[arg-type]

    @property
    def diverged(self) -> int:
        """Number of trials that diverged."""
        return self.of("diverged")

    @property
    def stood(self) -> int:
        """Number of trials that stood still."""
        return self.of("stood still")

    @property
    def trained(self) -> int:
        """Number of trials that trained."""
        return self.of("trained")

    @property
    def counts(self) -> str:
        """Numbers of trials that trained, stood still, did not train and diverged."""
        return " / ".join(str(self.of(what)) for what in OUTCOMES)

    @property
    def rerun(self) -> Recipe:
        """Numbers of the re-runs of the best configuration; counts and shares alone."""
        again: Recipe = object.__new__(Recipe)
        again.__dict__ |= {**self.__dict__, "trials": self.again}
        return again

    def values(self, metric: str) -> NDArray[np.floating[Any]]:
        """Return final values of the finished trials; diverged trials at chance, losses capped there."""
        return self.finals(self.trials[self.trials["status"] != "failed"], metric).to_numpy(float)

    def finals(self, trials: pd.DataFrame, metric: str) -> pd.Series[float]:
        """Return final values of trials or re-runs; diverged ones at chance, losses capped there."""
        return at_baseline(trials, self._metrics.column(metric))

    def span(self, metric: str, form: str = ".1e") -> str:
        """Return median, least and largest final value, in a format."""
        values = self.values(metric)
        low, middle, high = (format(v, form) for v in (values.min(), np.median(values), values.max()))
        return f"{middle} ({low} to {high})"

    def at(self, step: int, metric: str) -> float:
        """Return the median value of the trials at an evaluation."""
        return float(np.median(self.values_at(step, metric)))

    def values_at(self, step: int, metric: str) -> NDArray[np.floating[Any]]:
        """Return the values of the trials at an evaluation."""
        return self._curves.loc[self._curves["step"] == step, metric].dropna().to_numpy(float)

    def chosen(self, hyperparameter: str) -> float:
        """Return a hyperparameter of the trial with the least objective."""
        ok = self.trials[self.trials["status"] == "ok"].sort_values("value")
        return float(ok[f"params.{hyperparameter}"].iloc[0])

    def median(self, metric: str) -> float:
        """Return the median final value."""
        return float(np.median(self.values(metric)))

    def spread(self, metric: str) -> float:
        """Return the standard deviation of the final values over trials."""
        return float(self.values(metric).std(ddof=1))

    @property
    def reached(self) -> int:
        """Number of trials whose headline was past its bar at some evaluation."""
        metric = self._metrics.headline
        values = self._own_curves.groupby("trial")[metric.column]
        best = values.max() if metric.better == "higher" else values.min()
        return sum(metric.reaches(float(value)) for value in best)

    @property
    def share_trained(self) -> str:
        """Share of trials that trained, with Wilson's interval."""
        return interval(*wilson_interval(self.trained, self.n), digits=2)

    def where(self, query: str) -> Recipe:
        """Return the numbers of trials that a pandas query selects; hyperparameters are `lr`, `damping`, ….

        Counts, shares, ranges and work are of the selected trials.  Means exist only for all trials.
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
    def that_trained(self) -> Recipe:
        """Numbers of the trials that trained."""
        return self.where("outcome == 'trained'")

    @property
    def accuracy(self) -> str:
        """Mean final test accuracy over all trials, with its 95 % interval unless they are two clusters."""
        return self.mean("test_accuracy")

    def mean(self, metric: str) -> str:
        """Return the mean final value over all trials with its 95 % interval; diverged ones at chance."""
        row = self._final(metric)
        return interval(row["mean"], row["mean_low"], row["mean_high"])

    def band(self, metric: str) -> str:
        """Return mean ± standard error over all trials, as in the paper; diverged ones at chance."""
        row = self._final(metric)
        mean, error = row["mean"], row["standard_error"]
        if abs(mean) >= 1000:
            return f"{mean:.1e} ± {error:.1e}"
        return f"{number(mean, 3, fixed=True)} ± {number(error, 3, fixed=True)}"

    def _final(self, metric: str) -> pd.Series[Any]:
        found = self._finals
        own = (found["recipe"] == self.name) & (found["metric"] == self._metrics.column(metric).label)
        return found[own & (found["trials"] == "all")].iloc[0]

    @property
    def best(self) -> float:
        """Test accuracy of the trial with the best value."""
        return float(self.trials.sort_values(["value", "trial"]).iloc[0]["test_accuracy"])

    def above(self, accuracy: float) -> str:
        """Return number and share of trials above a test accuracy, the share with Wilson's interval."""
        done = self.trials[self.trials["status"] != "failed"]
        count = int((done["test_accuracy"] > accuracy).sum())  # NaN of a diverged trial is not above
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
        return float(self._own_curves.groupby("trial")["work"].max().median())

    @property
    def _own_curves(self) -> pd.DataFrame:
        return self._curves[self._curves["trial"].isin(self.trials["trial"])]

    @property
    def _gaps(self) -> NDArray[np.floating[Any]]:
        own = self.that_trained.trials
        return (own["test_loss"] - own["train_loss"]).to_numpy(float)

    @property
    def gap_mean(self) -> float:
        """Mean of final test loss − training loss over trials that trained."""
        return float(self._gaps.mean())

    @property
    def gap(self) -> str:
        """Mean of final test loss − training loss over trials that trained, with its 95 % interval."""
        values = self._gaps
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
        """Number of re-runs of the best configuration."""
        return len(self.again)
