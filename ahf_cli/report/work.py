"""Work and seconds of trials: as measured with `costs.json`, else as counted and as they ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ahf_cli.errors import InputError
from ahf_cli.study.costs import Costs, read_costs
from ahf_cli.study.store import Study


@dataclass(frozen=True)
class CostWords:
    """How work and seconds are defined: the labels of axes, and sentences."""

    work: str
    seconds: str
    sentences: str


COUNTED = CostWords(
    "gradients and curvature products (not measured)",
    "training time (s, evaluation excluded)",
    "Work is gradients plus products, each product counted as a gradient; not measured. Seconds are those "
    "of the runs.",
)
MEASURED = CostWords(
    "work (units of one gradient, as measured)",
    "seconds by one timing of all recipes",
    "Work is in units of one gradient, with products, losses and set-up as measured. Seconds are the time of "
    "this work and the steps' overhead, by one timing of all recipes.",
)


def costs_of(study: Study, recipes: Sequence[str]) -> tuple[Costs | None, list[str]]:
    """Return the measured costs of a study's recipes, None without any, and the fault of their file."""
    try:
        costs = read_costs(study)
    except InputError as error:
        return None, list(error.lines)
    if costs is not None and (unknown := [name for name in recipes if name not in costs.recipes]):
        return None, [f"costs.json lacks {', '.join(unknown)}: `ahf timing {study.name}` measures again"]
    return costs, []


def with_work(curves: pd.DataFrame, manifest: Mapping[str, Any], costs: Costs | None) -> pd.DataFrame:
    """Add the columns `work`, `examples`, `seconds_run` and, where measured, new `seconds`.

    `examples` counts those of gradient and curvature batches, `seconds_run` is the time of the run.  Counts
    g, p, l of gradients, products and losses after t steps give with the units u of `costs`

        work = g + u_product p + u_loss l + u_setup t,   seconds = work · gradient + overhead · t.

    Unknown numbers of losses count as 0.  Without `costs`, work = g + p, and seconds are those of the run.
    """
    identity = manifest.get("identity", {})
    size = identity.get("task", {}).get("batch_size")
    batches = {k: _batches(r.get("structure", {})) for k, r in identity.get("recipes", {}).items()}
    step_sees = curves["recipe"].map(batches).astype(float) * (math.nan if size is None else size)
    curves = curves.assign(seconds_run=curves["seconds"], examples=step_sees * curves["step"])
    if costs is None:
        return counted(curves)

    def own(name: str) -> pd.Series[float]:
        by_recipe = {recipe: getattr(found, name) for recipe, found in costs.recipes.items()}
        return curves["recipe"].map(by_recipe).astype(float)

    work = curves["gradients"] + own("product") * curves["products"] + own("setup") * curves["step"]
    work = work + costs.loss * curves["losses"].astype(float).fillna(0.0)
    return curves.assign(work=work, seconds=costs.gradient * work + own("overhead") * curves["step"])


def counted(curves: pd.DataFrame) -> pd.DataFrame:
    """Return curves whose work counts a product as a gradient, and whose seconds are those of the run."""
    return curves.assign(work=curves["gradients"] + curves["products"], seconds=curves["seconds_run"])


def _batches(structure: Mapping[str, Any]) -> float:
    """Return the number of mini-batches that a step sees; NaN where it differs from step to step."""
    if structure.get("batch_growth", 1) != 1:
        return math.nan
    if structure.get("curvature_batch") != "independent":
        return 1
    many = structure.get("curvature_batches", 1)
    return 1 + (many if isinstance(many, int) else 1)


def cost_words(curves: pd.DataFrame, costs: Sequence[Costs]) -> CostWords:
    """Return the definition of work and seconds in curves; `costs` is empty where they are not measured."""
    if not costs:
        return COUNTED
    more = ""
    if curves["losses"].isna().any():
        more += " Losses that older records do not count are left out."
    if len(costs) > 1:
        more += f" The studies have {len(costs)} timings, and their seconds may differ by machine."
    return replace(MEASURED, sentences=MEASURED.sentences + more)
