"""Differences between two recipes that may be of two studies."""

from __future__ import annotations

import pandas as pd

from ahf_cli.report.statistics.pairs import paired_difference
from docs.findings.interval import interval
from docs.findings.recipe import Recipe


def difference(before: Recipe, after: Recipe, metric: str = "test_accuracy", again: bool = False) -> str:
    """Return the mean difference after − before of final values, its 95 % interval and the number of pairs.

    Pairs are trials of the same slot, or with `again` re-runs, with equal training seeds.  Trials must also
    have equal shared hyperparameters.  A diverged trial or re-run has the value of chance.

    Raises:
        ValueError: fewer than two pairs.
    """
    one, two = (recipe.again if again else recipe.trials for recipe in (before, after))
    both = one.set_index("trial").add_suffix("_a").join(two.set_index("trial").add_suffix("_b"), how="inner")
    equal = both["seed_a"] == both["seed_b"]
    shared = [c for c in one.columns if c.startswith("params.") and c in two.columns]
    for key in () if again else shared:
        old, new = both[f"{key}_a"], both[f"{key}_b"]
        equal &= (old == new) | old.isna() | new.isna()
    slots = both.index[equal]
    if len(slots) < 2:
        raise ValueError(f"{before.name} and {after.name} have {len(slots)} pairs")

    def values(recipe: Recipe, trials: pd.DataFrame) -> pd.Series[float]:
        return recipe.finals(trials.set_index("trial").loc[slots], metric)

    found = paired_difference(values(after, two), values(before, one))
    return f"{interval(*found, sign=True)}, n = {len(slots)}"
