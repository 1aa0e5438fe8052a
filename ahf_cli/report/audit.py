"""Theorem 1 against the steps of a trial: which hypotheses held, and whether the conclusion did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.recipes.structure import Structure
from ahf_cli.report.statistics.trajectory import Array
from ahf_cli.report.text import NOTHING, number
from ahf_cli.study.frames import rows_frame
from ahf_cli.study.store import Study
from ahf_cli.training.records import TrialResult

NEEDED = ("epsilon", "sigma", "smoothness")
"""Hyperparameters without which the theorem says nothing about a trial."""
HYPOTHESES = {
    "eq3_used": "by Eq. 3",
    "same_loss": "one h",
    "sigma_chosen": "σ ≥ G",
    "sigma_l2": "σ ≥ ‖δ‖₂",
    "smooth_gradient": "L ≥ L̂(∇h)",
    "smooth_direction": "L ≥ L̂(−δ)",
    "beta1": "β₁ < ε/(ε+σ)",
    "xi": "ξ > σ",
    "positive": "α > 0",
}
"""Columns of the hypotheses, each the share of steps in which it held, and their headings."""
NOTE = (
    "Shares of steps, but for rounding of h. G: the norm of the recipe's step size. ξ: its μ. `by Eq. 3`: α "
    "by Eq. 3 with ‖δ‖₂, moments of Algorithm 1, no step shortened. `one h`: a step begins at the loss with "
    "which the last one ended. α > 0: until the first step with ‖δ‖₂ ≤ ε. T: the theorem promises that step "
    "within T + 1 steps, for h ≥ 0 and ξ = 2σ. Statement and proof: docs/theory.md."
)
OUTCOMES = ("held", "failed", "open")
ROUNDING = 10 * float(np.finfo(np.float32).eps)
"""Largest relative error of a loss that counts as rounding."""
BOUND = {"eq3": 4.5, "eq3_repaired": 18.0}
"""c of T = c L (ε+2σ)² h(θ₁)/ε⁴ for each step size by Eq. 3, if ξ = 2σ."""
_DEFAULT = Structure().chosen


def unfit(result: TrialResult) -> str:
    """Return the reason for which the theorem says nothing about a trial's recipe, or ""."""
    lacks = [HYPERPARAMETERS[name].symbol for name in NEEDED if name not in result.params]
    return f"has no {', '.join(lacks)}" if lacks else ""


def audit(result: TrialResult, steps: pd.DataFrame, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of `HYPOTHESES` for one trial, and the theorem's conclusion.

    Args:
        result: a trial with the hyperparameters `NEEDED`.
        steps: its steps, at least one.
        choices: structural choices of its recipe; absent ones are defaults.

    Returns:
        Shares in [0, 1], NaN for a hypothesis about no step; `all_hold`; `first`, the first step with
        ‖δ‖₂ ≤ ε, NaN without one; `bound`, the theorem's number of steps T, NaN where none is proved;
        `conclusion`: held, failed, or open before step T + 1; "" without T.
    """
    chosen = {**_DEFAULT, **choices}
    epsilon, sigma, smoothness = (result.params[name] for name in NEEDED)
    xi = result.params.get("mu", math.nan)
    at = {str(name): steps[name].to_numpy(float) for name in steps.select_dtypes("number")}
    length = at["direction_l2"]
    small = np.flatnonzero(length <= epsilon)
    before = slice(0, small[0] if len(small) else None)
    alpha = at["step_size" if chosen["step_size"] == "eq3_repaired" else "eq3_step_size"]
    rounding = ROUNDING * np.maximum(np.abs(at["loss"]), np.abs(at["loss_after"]))
    beta1 = epsilon / (epsilon + 2 * sigma)
    shares = {
        "eq3_used": float(_is_method(chosen)),
        "same_loss": _share(np.abs(at["loss"][1:] - at["loss_after"][:-1]) <= rounding[1:]),
        "sigma_chosen": _share(at[f"direction_{chosen['norm']}"] <= sigma),
        "sigma_l2": _share(length <= sigma),
        "smooth_gradient": _share(_smooth(at, "smoothness_gradient", smoothness, rounding)),
        "smooth_direction": _share(_smooth(at, "smoothness_direction", smoothness, rounding)),
        "beta1": float(beta1 < epsilon / (epsilon + sigma)),
        "xi": float(xi > sigma),
        "positive": _share(alpha[before] > 0),
    }
    first = float(at["step"][small[0]]) if len(small) else math.nan
    limit = math.nan
    if shares["eq3_used"] and math.isclose(xi, 2 * sigma) and at["loss"].min() >= 0:
        limit = (
            BOUND[chosen["step_size"]] * smoothness * (epsilon + 2 * sigma) ** 2 * at["loss"][0] / epsilon**4
        )
    return {
        "recipe": result.recipe, "trial": result.slot, "steps": len(steps), **shares,
        "all_hold": all(share == 1 for share in shares.values() if not math.isnan(share)),
        "first": first, "bound": limit, "conclusion": _conclusion(first, limit, len(steps)),
    }  # fmt: skip


def of_study(
    study: Study, results: Sequence[TrialResult]
) -> tuple[pd.DataFrame, dict[str, str], tuple[str, ...]]:
    """Return the audits of finished trials, the reasons of skipped recipes, and the faults of files."""
    skipped = {r.recipe: why for r in results if (why := unfit(r))}
    fit = [r for r in results if r.recipe not in skipped]
    read = study.reader.steps(fit)
    steps = dict(iter(rows_frame(fit, read).groupby(["recipe", "trial"])))
    described = study.manifest().get("identity", {}).get("recipes", {})
    rows = []
    for result in fit:
        own = steps.get((result.recipe, result.slot))
        if own is not None:
            choices = described.get(result.recipe, {}).get("structure", {})
            rows.append(audit(result, own.sort_values("step"), choices))
    audited = {row["recipe"] for row in rows}
    skipped |= {r.recipe: "its steps are not on disk" for r in fit if r.recipe not in audited}
    return pd.DataFrame(rows), skipped, read.problems


def _smooth(at: Mapping[str, Array], column: str, smoothness: float, rounding: Array) -> Any:
    """Return the steps with h(y) ≤ h(x) + ⟨g, y−x⟩ + ½ L ‖y−x‖² but for the rounding of h."""
    squared = at["update_l2"] ** 2
    # L̂ of a zero step is 0/0; the inequality holds there.
    return (0.5 * (at[column] - smoothness) * squared <= rounding) | (squared == 0)


def _is_method(chosen: Mapping[str, Any]) -> bool:
    """Return whether an update is the theorem's: Eq. 3 times the moments of Algorithm 1, unchanged."""
    wanted = {"moments": "adam", "norm": "l2", "clipping": "none", "line_search": "none", "parts": ""}
    return chosen["step_size"] in BOUND and all(chosen[k] == v for k, v in wanted.items())


def _share(held: Any) -> float:
    return float(held.mean()) if len(held) else math.nan


def _conclusion(first: float, limit: float, made: int) -> str:
    if math.isnan(limit):
        return ""
    if first <= limit + 1:
        return "held"
    return "failed" if made >= limit + 1 else "open"


def trials_text(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of trials as text."""
    names = rows["recipe"] + "/" + rows["trial"].map("{:03d}".format)
    return pd.DataFrame(
        {
            "trial": names, "steps": rows["steps"].astype(str), **_shares_text(rows),
            "all hold": rows["all_hold"].map({True: "yes", False: "no"}),
            "‖δ‖₂ ≤ ε at": rows["first"].map(lambda v: number(v, 0)),
            "T": rows["bound"].map(lambda v: number(v, 0)),
            "conclusion": rows["conclusion"].replace("", NOTHING),
        }
    )  # fmt: skip


def recipes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a recipe: means of shares over trials, medians of first step and T, counts of trials."""
    own = rows.groupby("recipe", sort=False)
    found = own[list(HYPOTHESES)].mean()
    found.insert(0, "trials", own.size())
    found["all_hold"] = own["all_hold"].sum()
    found["reached"] = own["first"].count()
    found["first"], found["bound"] = own["first"].median(), own["bound"].median()
    for outcome in OUTCOMES:
        found[outcome] = (rows["conclusion"] == outcome).groupby(rows["recipe"], sort=False).sum()
    return found.reset_index()


def recipes_text(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `recipes` as text."""
    trials = rows["trials"].astype(str)
    return pd.DataFrame(
        {
            "recipe": rows["recipe"], "trials": trials, **_shares_text(rows),
            "all hold": rows["all_hold"].astype(str) + " of " + trials,
            "‖δ‖₂ ≤ ε": rows["reached"].astype(str) + " of " + trials,
            "at step": rows["first"].map(lambda v: number(v, 0)),
            "T": rows["bound"].map(lambda v: number(v, 0)),
            "conclusion": [_counts(row) for row in rows.to_dict("records")],
        }
    )  # fmt: skip


def _counts(row: Mapping[Any, Any]) -> str:
    """Return the counts of a recipe's conclusions as text."""
    return ", ".join(f"{row[outcome]} {outcome}" for outcome in OUTCOMES if row[outcome]) or NOTHING


def _shares_text(rows: pd.DataFrame) -> dict[str, pd.Series[str]]:
    """Return the columns of the hypotheses as text; without G where it is ‖δ‖₂ in every row."""
    same = rows["sigma_chosen"].equals(rows["sigma_l2"])
    shown = [name for name in HYPOTHESES if not (same and name == "sigma_chosen")]
    return {HYPOTHESES[name]: rows[name].map(_percent) for name in shown}


def _percent(share: float) -> str:
    """Return a share as text in which 100 % means every step, and 0 % none."""
    if math.isnan(share):
        return NOTHING
    if 0 < share < 1:
        return f"{min(99.9, max(0.1, 100 * share)):.1f} %"
    return f"{share:.0%}".replace("%", " %")
