"""The hyperparameters that act on the result, and the steps in which a limit decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.recipes.structure import WHOLE, Structure
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.statistics.pairs import holm
from ahf_cli.report.statistics.sample import dependence, rank_correlation
from ahf_cli.report.study_data import StudyData, ranked
from ahf_cli.report.text import NOTHING, Table, number
from ahf_cli.tasks.metrics import Column

Spaces = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""recipe → hyperparameter → low, high and log of its search range"""

SIGNIFICANT = 0.05
FEWEST = 12
"""least trials of a test: four in each third of the settings"""
ENOUGH = 20
"""least trials of a recipe of which it is said that nothing acts"""
YES, NO, UNTESTED = "yes", "not shown", "not tested"
NEAR = 1 - 1e-4
"""A length in float32 equals its limit up to rounding."""


def acts_table(
    trials: pd.DataFrame, names: list[str], spaces: Spaces, objective: Column, *, independent: bool
) -> Table:
    """Return the width of each search range, and whether the hyperparameter acts on the capped objective.

    Columns: recipe, hyperparameter, low, high, log, decades, n, rank_correlation (Spearman; negative if a
    larger setting is better), p of `dependence`, p_holm over the table, and acts: `YES`, `NO` or `UNTESTED`.
    """
    done = ranked(trials)
    rows = []
    for name in names:
        own = done[done["recipe"] == name]
        for key in _searched(own, spaces.get(name, {})):
            found = spaces.get(name, {}).get(key, {})
            low, high = (float(found.get(end, np.nan)) for end in ("low", "high"))
            varied = own[own[f"params.{key}"].notna()] if f"params.{key}" in own else own[:0]
            x = varied[f"params.{key}"].to_numpy(float) if len(varied) else np.empty(0)
            y = varied["value"].to_numpy(float)
            rows.append(
                {"recipe": name, "hyperparameter": key, "low": low, "high": high}
                | {"log": bool(found.get("log")), "n": len(x)}
                | {"decades": np.log10(high / low) if low > 0 else np.nan}
                | {"rank_correlation": rank_correlation(x, y)}
                | {"p": dependence(x, y) if independent and len(x) >= FEWEST else np.nan}
            )
    columns = ["recipe", "hyperparameter", "low", "high", "log", "decades", "n", "rank_correlation", "p"]
    numbers = pd.DataFrame(rows, columns=columns)
    numbers["p_holm"] = holm(list(numbers["p"]))
    said = np.where(numbers["p_holm"] < SIGNIFICANT, YES, NO)
    numbers["acts"] = np.where(numbers["p"].isna(), UNTESTED, said)
    text = pd.DataFrame(
        {
            "recipe": numbers["recipe"],
            "hyperparameter": numbers["hyperparameter"],
            "range": [_range(row) for row in numbers.to_dict("records")],
            "decades": [number(v, 1, fixed=True) for v in numbers["decades"]],
            "n": numbers["n"].astype(str),
            "rank correlation": [number(v, 2, fixed=True) for v in numbers["rank_correlation"]],
            "p (Holm)": [number(v, 3) for v in numbers["p_holm"]],
            "acts": numbers["acts"],
        }
    )
    title = f"Hyperparameters and {objective.label}"
    return Table("acts", numbers, {title: text}, _note(numbers, independent))


def _range(row: Mapping[Any, Any]) -> str:
    if np.isnan(row["low"]):
        return NOTHING
    return f"[{row['low']:g}, {row['high']:g}]{' log' if row['log'] else ''}"


def _searched(own: pd.DataFrame, space: Mapping[str, Any]) -> list[str]:
    """Return the searched hyperparameters; those that vary, in a study that recorded no ranges."""
    varying = [str(c) for c in own if str(c).startswith("params.") and own[c].nunique() > 1]
    return list(space) or [name.removeprefix("params.") for name in varying]


def _note(numbers: pd.DataFrame, independent: bool) -> str:
    decades = "Decades are log10(high/low), also of a linear range. "
    if not independent:
        return f"{decades}The sampler chose these trials: they depend on each other, and no test is made."
    return (
        f"{decades}A hyperparameter acts if p < {SIGNIFICANT:g} by Holm's correction over the table's "
        f"{int(numbers['p'].notna().sum())} tests. p is twice the smaller of two: Spearman's (t) and "
        "Kruskal-Wallis between the thirds of the settings, which sees a best setting within the range. "
        f"Fewer than {FEWEST} trials are not tested."
    )


def without_effect(acts: pd.DataFrame) -> list[str]:
    """Return the recipes with `ENOUGH` trials of which no searched hyperparameter has p < 0.05.

    p is not corrected here: a correction would call more recipes without effect.
    """
    known = (acts["n"] >= ENOUGH) & (acts["p"] >= SIGNIFICANT)
    others = set(acts.loc[~known, "recipe"])
    return [name for name in dict.fromkeys(acts["recipe"]) if name not in others]


def limits_table(
    steps: pd.DataFrame, trials: pd.DataFrame, described: Mapping[str, Mapping[str, Any]]
) -> Table | None:
    """Return the share of steps in which each limit of a recipe decided; None without such steps.

    Columns: recipe, limit, trials, steps, share (of all steps), median (over trials of a trial's share).
    """
    rows: list[dict[str, Any]] = []
    shares: dict[tuple[str, str], str] = {}
    for name, found in described.items():
        structure = found.get("structure", {})
        own = steps[(steps["recipe"] == name) & (steps["status"] != "failed")]
        if not len(own) or not structure or any(slot in structure for slot in WHOLE):
            continue
        params = trials[trials["recipe"] == name].set_index("trial").filter(regex=r"^params\.")
        joined = own.join(params, on="trial")
        for limit, decided in limits_of(joined, structure).items():
            each, share = decided.groupby(own["trial"]).mean(), float(decided.mean())
            row = {"recipe": name, "limit": limit, "trials": len(each), "steps": len(own)}
            rows.append(row | {"share": share, "median": float(each.median())})
            shares[name, limit] = number(share, 3, fixed=True)
    if not rows:
        return None
    numbers = pd.DataFrame(rows)
    first = numbers.drop_duplicates("recipe")
    text = pd.DataFrame({"recipe": first["recipe"], "steps": first["steps"].astype(str)})
    for limit in numbers["limit"].unique():
        text[limit] = [shares.get((name, limit), NOTHING) for name in first["recipe"]]
    note = f"Share of the steps of all trials; {NOTHING}: the recipe has no such limit."
    return Table("limits", numbers, {"Share of steps in which a limit decided": text}, note)


def limits_of(steps: pd.DataFrame, structure: Mapping[str, Any]) -> dict[str, pd.Series[bool]]:
    """Return for each limit of a structure the steps in which it decided.

    Args:
        steps: one recipe's steps, (steps,): the fields of `StepRow`, and the columns `params.*` of its trial.
        structure: choices by slot; an absent slot has its default.
    """

    def choice(slot: str) -> Any:
        return structure.get(slot, getattr(Structure, slot))

    length, found = steps["update_l2"], {}
    if choice("clipping") == "radius":
        found["clip at the radius"] = length >= NEAR * steps["params.radius"]
    if choice("clipping") == "direction":
        found["clip at the direction"] = (length >= NEAR * steps["direction_l2"]) & (length > 0)
    if choice("damping_rule") == "published":
        found["damping at its bound"] = steps["damping"] <= 0.1 / NEAR
    elif choice("damping_rule") != "constant":
        scaled = choice("damping_rule") == "levenberg_marquardt_scaled"
        relative = steps["damping"] / (steps["params.damping"] if scaled else 1)
        found["damping at its bound"] = (relative <= 1e-10 / NEAR) | (relative >= 1e10 * NEAR)
    searched = choice("line_search") == "armijo"
    if choice("step_size") in _SLACK or searched:
        wanted = _step_size(steps, choice("step_size"), choice("norm"))
        if choice("step_size") in _SLACK:
            found["Eq. 3 clipped at 0"] = (steps["step_size"] == 0) & (wanted == 0)
        if searched:
            # The search multiplies α by a power of 0.8.
            full = wanted * _kept(steps, wanted, choice("clipping"))
            found["line search"] = steps["step_size"] < 0.9 * full
    if choice("solver") in ("cg", "trust_region"):
        found["CG at its iteration limit"] = steps["stop"] == "max_iterations"
    return found


_SLACK = {"eq3": 1.0, "eq3_repaired": 1.5}


def _step_size(steps: pd.DataFrame, rule: str, norm: str) -> pd.Series[float]:
    """Return α by its rule, before clipping and line search, (steps,)."""
    if rule == "constant":
        return steps["params.lr"]
    if rule == "hyperbolic":
        return steps["params.lr"] / (1 + (steps["step"] - 1) / steps["params.halving"])
    # Eq. 3 is a positive factor times G (G − s c), with G = ‖δ‖ and c = (ε/2)(1 − β₁ᵗ⁻¹).
    epsilon, sigma, size = steps["params.epsilon"], steps["params.sigma"], steps[f"direction_{norm}"]
    c = epsilon / 2 * (1 - (epsilon / (epsilon + 2 * sigma)) ** (steps["step"] - 1))
    printed = steps["eq3_step_size"]
    repaired = printed * (size - _SLACK[rule] * c) / (size - c)
    return (printed if rule == "eq3" else repaired.where(size > _SLACK[rule] * c, 0)).clip(lower=0)


def _kept(steps: pd.DataFrame, wanted: pd.Series[float], clipping: str) -> pd.Series[float]:
    """Return the factor that clipping leaves of α, (steps,): limit/‖α T(δ)‖, at most 1."""
    if clipping == "none":
        return pd.Series(1.0, steps.index)
    limit = steps["params.radius"] if clipping == "radius" else steps["direction_l2"]
    length = wanted * steps["update_l2"] / steps["step_size"]
    return (limit / length).clip(upper=1).fillna(1.0)


def _acts(data: StudyData) -> Table:
    return acts_table(
        data.trials, data.recipes, data.of_recipes("spaces"), data.minimized, independent=data.independent
    )


EXHIBIT = Exhibit(8, [lambda d, _: _acts(d), lambda d, _: limits_table(d.steps, d.trials, d.described)])
