"""Hyperparameters from a sampler: one new sampler for every question, seeded by study and slot."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
import optuna
from optuna.distributions import FloatDistribution

from ahf_cli.hyperparameters import Range

optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler(name: str, seed: int, stream: int, slot: int, parallel: bool) -> optuna.samplers.BaseSampler:
    """Make the sampler of one slot.

    A sampler that lives on repeats itself after a restart and across workers; one made anew for each slot,
    seeded by (study seed, stream, slot), does not.  A pre-run and its search have streams of their own.  The
    seed is the same for every recipe, so that recipes with equal search spaces begin with the same trials.
    """
    own = int(np.random.default_rng([seed, stream, slot]).integers(2**32))
    if name == "random":
        return optuna.samplers.RandomSampler(seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=own, multivariate=True, constant_liar=parallel)


def distributions(space: Mapping[str, Range]) -> dict[str, FloatDistribution]:
    """Return the search space in Optuna's terms."""
    return {name: FloatDistribution(r.low, r.high, log=r.log) for name, r in space.items()}


def suggest(trial: optuna.Trial, space: Mapping[str, Range]) -> dict[str, float]:
    """Ask for one value of each hyperparameter."""
    return {
        name: trial.suggest_float(name, r.low, r.high, log=r.log)
        for name, r in space.items()
        if math.isfinite(r.low)
    }
