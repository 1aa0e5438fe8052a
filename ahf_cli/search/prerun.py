"""From the dynamics of a pre-run to search ranges for σ and L."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahf_cli.config.load import Config
from ahf_cli.config.strict_yaml import dump_yaml
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Range
from ahf_cli.study.files import atomic_write
from ahf_cli.study.store import Study

Array = NDArray[np.float64]
MIN_VALUES = 30
"""fewest positive L̂ that support a range"""
MIN_SHARE = 0.5
"""smallest share of trials that stayed finite, and of positive values among all their L̂"""


@dataclass(frozen=True)
class Estimate:
    """One proposed range, how it was found, and the paper's range beside it."""

    hyperparameter: str
    range: Range
    """the proposal; the paper's range where there is no support"""
    paper: Range
    supported: bool
    how: str
    """one sentence"""


def estimate_sigma(norms: Sequence[Array], norm: str, diverged: int = 0) -> Estimate:
    """Propose σ from the median to the maximum over trials of max_t G_t, G the chosen norm of δ.

    Args:
        norms: G_t of each trial that stayed finite, (steps,) each.
        norm: its name.
        diverged: number of trials left out because they did not stay finite.
    """
    peaks = np.array([values.max() for values in norms if len(values)])
    if too_few := _too_few(len(norms), diverged):
        return _unsupported("sigma", too_few)
    if not np.isfinite(peaks).all() or peaks.max(initial=0) <= 0:
        return _unsupported("sigma", f"max_t ‖δ_t‖ ({norm}) is 0 or not finite")
    low, high = float(np.median(peaks)), float(peaks.max())
    how = f"median and maximum of max_t ‖δ_t‖ ({norm}) over the {_finite_of(len(norms), diverged)}"
    return _estimate("sigma", low, high, how)


def estimate_smoothness(values: Sequence[Array], diverged: int = 0) -> Estimate:
    """Propose L from the median to the 95 % quantile of the positive L̂_t for g = ∇h, over all trials.

    Args:
        values: L̂_t of each trial that stayed finite, (steps,) each; values that are not finite count as no
            support.
        diverged: number of trials left out because they did not stay finite.
    """
    every = np.concatenate([*values, np.empty(0)])
    positive = every[np.isfinite(every) & (every > 0)]
    share = len(positive) / max(len(every), 1)
    counted = f"{len(positive)} of {len(every)} values of L̂ for g = ∇h are positive and finite"
    if too_few := _too_few(len(values), diverged):
        return _unsupported("smoothness", too_few)
    if len(positive) < MIN_VALUES or share < MIN_SHARE:
        return _unsupported("smoothness", f"{counted} (needed: {MIN_VALUES} and {MIN_SHARE:.0%})")
    low, high = (float(q) for q in np.quantile(positive, [0.5, 0.95]))
    how = (
        f"median and 95 % quantile of the positive L̂ over the {_finite_of(len(values), diverged)}; {counted}"
    )
    return _estimate("smoothness", low, high, how)


def _finite_of(finite: int, diverged: int) -> str:
    return f"{finite} of {finite + diverged} trials that stayed finite"


def _too_few(finite: int, diverged: int) -> str:
    """Say that too many trials diverged for a range, or ""."""
    total = finite + diverged
    if finite and finite >= MIN_SHARE * total:
        return ""
    return f"only {finite} of {total} trials stayed finite (needed: {MIN_SHARE:.0%})"


def estimates_of(study: Study, config: Config) -> list[Estimate]:
    """Return the proposals for σ and L from the finished trials of a pre-run."""
    name = config.prerun.recipe
    norm = config.recipe(name).choices.norm
    finished = study.finished(name)
    frames = [study.trial(name, r.slot).steps() for r in finished if r.status == "ok"]
    norms = [frame[f"direction_{norm}"].to_numpy() for frame in frames]
    smoothness = [frame["smoothness_gradient"].to_numpy() for frame in frames]
    diverged = sum(r.status == "diverged" for r in finished)
    return [estimate_sigma(norms, norm, diverged), estimate_smoothness(smoothness, diverged)]


def write_ranges(study: Study, config: Config, estimates: Sequence[Estimate]) -> tuple[Path, list[Estimate]]:
    """Write `ranges.yaml` with the proposals that the recipe can search; return its path and these."""
    name, file = config.prerun.recipe, study.folder / "ranges.yaml"
    used = [e for e in estimates if e.hyperparameter in config.space(name)]
    head = "".join(f"# {e.hyperparameter}: {e.how}\n" for e in estimates)
    text = head + dump_yaml(ranges(name, used) if used else {name: {}})
    atomic_write(file, text.encode())
    return file, used


def ranges(recipe: str, estimates: Sequence[Estimate]) -> Mapping[str, Mapping[str, Mapping[str, object]]]:
    """Return the proposals in the form of the configuration's `spaces`."""
    return {
        recipe: {
            e.hyperparameter: {"low": e.range.low, "high": e.range.high, "log": e.range.log}
            for e in estimates
        }
    }


def _paper(name: str) -> Range:
    found = HYPERPARAMETERS[name].search
    assert found is not None
    return found


def _estimate(name: str, low: float, high: float, how: str) -> Estimate:
    return Estimate(name, Range(low, high), _paper(name), True, how)


def _unsupported(name: str, why: str) -> Estimate:
    return Estimate(name, _paper(name), _paper(name), False, f"no support: {why}; the paper's range is kept")
