"""Statistics over trials: plain NumPy functions of arrays, no hidden state and no global random numbers.

One module a noun: `columns` (moments, quantiles), `band` (a centre with a band at each step), `summary`
(final values), `interval` (estimates with intervals), `budget` (best of k trials), `target` (when a curve
meets it), `distribution` (ECDF), `comparison` (two samples against each other).
"""

from ahf_cli.report.statistics.band import BANDS, Band, Centre, band, carry_forward
from ahf_cli.report.statistics.best_of import (
    best_so_far,
    best_weights,
    expected_best,
    expected_best_interval,
    probability_of_beating,
    probability_of_beating_interval,
)
from ahf_cli.report.statistics.crossing import first_crossing, value_at_cost
from ahf_cli.report.statistics.distribution import Distribution, empirical_distribution, rank_correlation
from ahf_cli.report.statistics.final_values import Summary, summarize
from ahf_cli.report.statistics.interval import (
    Interval,
    bootstrap_interval,
    interquartile_mean,
    iqm_interval,
    mean_interval,
    median_interval,
    rate_difference,
    wilson_interval,
)
from ahf_cli.report.statistics.moments import (
    Array,
    count,
    mean,
    mean_and_standard_error,
    median,
    quantile,
    standard_deviation,
)
from ahf_cli.report.statistics.pairs import (
    cliffs_delta,
    holm,
    paired_difference,
    paired_permutation_test,
)

__all__ = [
    "BANDS",
    "Array",
    "Band",
    "Centre",
    "Distribution",
    "Interval",
    "Summary",
    "band",
    "best_so_far",
    "best_weights",
    "bootstrap_interval",
    "carry_forward",
    "cliffs_delta",
    "count",
    "empirical_distribution",
    "expected_best",
    "expected_best_interval",
    "first_crossing",
    "holm",
    "interquartile_mean",
    "iqm_interval",
    "mean",
    "mean_and_standard_error",
    "mean_interval",
    "median",
    "median_interval",
    "paired_difference",
    "paired_permutation_test",
    "probability_of_beating",
    "probability_of_beating_interval",
    "quantile",
    "rank_correlation",
    "rate_difference",
    "standard_deviation",
    "summarize",
    "value_at_cost",
    "wilson_interval",
]
