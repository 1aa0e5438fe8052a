"""Hyperparameters from a sampler: one new sampler for every question, seeded by study and slot."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from ahf_cli.recipes.hyperparameters import Range

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Known:
    """A sampler's knowledge of one slot: its hyperparameters, and its value once it has ended."""

    slot: int
    params: Mapping[str, float]
    value: float | None = None


def sampler(name: str, seed: int, stream: int, slot: int, parallel: bool) -> optuna.samplers.BaseSampler:
    """Make the sampler of one slot: "tpe", "gp" or "random".

    Samplers such as CMA-ES keep knowledge outside of the trials and cannot be made anew for each slot.  A
    search with one could not go on after a kill.

    A sampler that lives on repeats itself after a restart and across workers; one made anew for each slot,
    seeded by (study seed, stream, slot), does not.  A pre-run and its search have streams of their own.  The
    seed is the same for every recipe, so that recipes with equal search spaces begin with the same trials.
    """
    own = int(np.random.default_rng([seed, stream, slot]).integers(2**32))
    if name == "random":
        return optuna.samplers.RandomSampler(seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=own, deterministic_objective=True)
        return optuna.samplers.TPESampler(seed=own, multivariate=True, constant_liar=parallel)


def sobol(space: Mapping[str, Range], seed: int, stream: int, slot: int) -> dict[str, float]:
    """Return a slot's point of a scrambled Sobol' sequence (Owen, 1998) over a search space.

    The scrambling is seeded by (study seed, stream): recipes with as many free hyperparameters share the
    points of the unit cube.
    """
    from scipy.stats import qmc

    if not space:
        return {}
    sequence = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng([seed, stream]))
    if slot:
        sequence.fast_forward(slot)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one point has no balance to lose
        point = sequence.random(1)[0]
    return {name: _at(r, float(x)) for (name, r), x in zip(space.items(), point, strict=True)}


def _at(r: Range, x: float) -> float:
    """Return the point of a range at a fraction of its length, or of the length of its logarithm."""
    value = r.low * (r.high / r.low) ** x if r.log else r.low + (r.high - r.low) * x
    return min(max(value, r.low), r.high)


def propose(
    space: Mapping[str, Range], own: optuna.samplers.BaseSampler, known: Iterable[Known]
) -> dict[str, float]:
    """Ask a slot's sampler for hyperparameters: a function of the sampler and the known trials alone.

    Args:
        space: the search ranges.
        own: the sampler of the slot.
        known: other slots, ended or running.  The sampler sees them in the order of their slots.  So a
            resumed search asks the same as an uninterrupted one.
    """
    study = optuna.create_study(sampler=own)
    if not isinstance(own, optuna.samplers.RandomSampler):  # which looks at nothing
        for other in sorted(known, key=lambda k: k.slot):
            study.add_trial(frozen(space, other.params, other.value))
    return suggest(study.ask(), space)


def frozen(
    space: Mapping[str, Range],
    params: Mapping[str, float],
    value: float | None = None,
    state: TrialState = TrialState.RUNNING,
    attributes: Mapping[str, object] | None = None,
) -> optuna.trial.FrozenTrial:
    """Write a slot as a trial of Optuna's: complete where it has a value, else in the given state."""
    return create_trial(
        state=state if value is None else TrialState.COMPLETE,
        value=value,
        params={name: params[name] for name in space},
        distributions=dict(distributions(space)),
        user_attrs=dict(attributes or {}),
    )


def distributions(space: Mapping[str, Range]) -> dict[str, FloatDistribution]:
    """Return the search space in Optuna's terms."""
    return {name: FloatDistribution(r.low, r.high, log=r.log) for name, r in space.items()}


def fits(params: object, space: Mapping[str, Range]) -> TypeGuard[Mapping[str, float]]:
    """Tell whether these are hyperparameters of a space: all of them, and each a number in its range."""
    if not isinstance(params, Mapping) or params.keys() != space.keys():
        return False
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in params.values())
    return numbers and all(space[name].low <= params[name] <= space[name].high for name in space)


def suggest(trial: optuna.Trial, space: Mapping[str, Range]) -> dict[str, float]:
    """Ask for one value of each hyperparameter."""
    return {
        name: trial.suggest_float(name, r.low, r.high, log=r.log)
        for name, r in space.items()
        if math.isfinite(r.low)
    }
