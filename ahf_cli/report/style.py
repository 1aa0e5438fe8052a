"""How a recipe looks in every figure, and what is said of it below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from ahf_cli.recipes.recipe import RECIPES, Recipe
from ahf_cli.recipes.structure import CHOICES, AnyStructure, DiagonalHessian, Own, Structure, structure_of


@dataclass(frozen=True)
class Style:
    """Colour, dashes and marker: any one of them tells the recipes apart."""

    color: str
    line: str | tuple[float, tuple[float, ...]]
    marker: str


# Okabe and Ito's palette without its yellow, a grey, and Tol's wine: distinct in common colour blindness.
_COLORS = ("#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#666666", "#882255")
_LINES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0, (6, 2)),
    (0, (6, 2, 1.5, 2)),
    (0, (1.5, 1.5)),
    (0, (10, 3)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
    (0, (8, 2, 1, 2, 1, 2)),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "p", "<", ">", "*", "h")  # no cross: it marks a divergence
_ORDER = (
    "hf", "adaptive_hf", "hf_published", "adaptive_hf_published", "adam", "sgd_momentum", "hf_stable",
    "adaptive_hf_stable", "adahessian", "hf_martens", "natural_gradient", "nesterov", "rmsprop", "adagrad",
)  # fmt: skip
_FIXED = {name: index for index, name in enumerate(_ORDER)}
_RESERVED = 4
"""Styles that no derived recipe takes: those of the paper's four."""
STALLED = 0.95
"""A trial stands still if its final training loss is above this multiple of the initial one."""

EXPLANATIONS: dict[tuple[str, str], str] = {
    ("curvature", "hessian"): "exact Hessian",
    ("curvature", "ggn"): "generalized Gauss-Newton matrix",
    ("step_size", "constant"): "constant step size α",
    ("step_size", "hyperbolic"): "step size α that falls as 1/(1 + t/τ)",
    ("clipping", "radius"): "no update longer than r",
    ("clipping", "direction"): "no update longer than its direction",
    ("step_size", "eq3"): (
        "step size from Eq. 3, which shrinks with the square of the direction's norm, and is 0 where the "
        "formula is negative"
    ),
    ("step_size", "eq3_repaired"): "step size from Eq. 3 with the repaired bound",
    ("moments", "adam"): (
        "Adam's moments of the direction, so that with β₂ near 0 an update is little more than α times the "
        "direction's sign"
    ),
    ("moments", "published"): (
        "the released code's moments: Eq. 3 is computed but never used, and the learning rate stays at 0.001"
    ),
    ("reduction_ratio", "direction"): "the reduction ratio is taken at the full direction",
    ("reduction_ratio", "update"): "the reduction ratio is taken at the step made",
    ("reduction_ratio", "published"): (
        "the reduction ratio divides the change at the scaled step by the model at the full step, so the "
        "damping grows without end where the step is a small part of the direction"
    ),
    ("cg_rules", "published"): "CG ignores negative curvature",
    ("cg_rules", "martens_indefinite"): "CG ignores negative curvature",
    ("cg_rules", "published_truncated"): "CG stops at slow progress by the released rule",
    ("damping_rule", "constant"): "the damping is constant",
    ("curvature", "fisher"): "Fisher matrix of the model's distribution",
    ("preconditioner", "martens"): "CG preconditioned by the empirical Fisher's diagonal",
    ("backtracking", "martens"): "steps to the best of CG's iterates",
    ("line_search", "armijo"): "a line search, and no step where it finds none",
    ("regularization", "l2"): "weight decay within the loss",
}
"""What a structural choice means for training; choices that need no words are left out."""
SENTENCES = {
    "sgd_momentum": "gradient steps with heavy-ball momentum.",
    "nesterov": "gradient steps with Nesterov's momentum.",
    "adagrad": "gradient steps, each weight's divided by the root of its summed squares.",
    "rmsprop": "gradient steps, each weight's divided by the root of a moving mean of its squares.",
    "adam": "moving means of the gradient, divided by the roots of moving means of its squares.",
    "adahessian": "Adam with randomly probed Hessian diagonals in place of the gradient's squares.",
}
"""What the recipes are that solve no linear system."""
OWN, CHANGED = "an optimizer of a plug-in.", "parts changed by a plug-in"
LARGE_MU = 0.1
"""from here on μ outweighs the root of the second moment, whose entries are far below 1"""
DAMPED_MOMENTS = (
    "Adam's moments of the direction, with a μ for which an update is about α/μ times the direction"
)
OTHER_VECTOR = (
    "the reduction ratio divides the change at the update, whose size does not follow the direction's, by "
    "the model at the direction"
)
"""What the published reduction ratio means where the update is no multiple of the direction."""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Give each recipe its style: built-in ones keep theirs, others take the next free ones by name.

    Of `study/recipe` names with the same built-in recipe, the first keeps its style.
    """
    names = list(dict.fromkeys(names))
    taken: dict[str, int] = {}
    for name in names:
        index = _FIXED.get(name.rpartition("/")[2])
        if index is not None and index not in taken.values():
            taken[name] = index
    free = (i for i in range(_RESERVED, len(_FIXED) + len(names) + 1) if i not in taken.values())
    for name in sorted(names):
        if name not in taken:
            taken[name] = next(free)
    return {name: _style(taken[name]) for name in names}


def _style(index: int) -> Style:
    lap = index // len(_COLORS)  # a second lap through the colours takes other dashes
    return Style(
        _COLORS[index % len(_COLORS)], _LINES[(index + lap) % len(_LINES)], _MARKERS[index % len(_MARKERS)]
    )


def explain(name: str, structure: AnyStructure, fixed: Mapping[str, float] = MappingProxyType({})) -> str:
    """Say in one sentence what a recipe is, from its structural choices and fixed hyperparameters."""
    if isinstance(structure, Own):
        return OWN
    if not isinstance(structure, Structure):
        return SENTENCES[structure.diagonal if isinstance(structure, DiagonalHessian) else structure.method]
    chosen = {key: getattr(structure, key) for key in CHOICES}
    parts = [EXPLANATIONS[pair] for pair in chosen.items() if pair in EXPLANATIONS]
    if structure.moments == "adam" and fixed.get("mu", 0) >= LARGE_MU:
        parts[parts.index(EXPLANATIONS["moments", "adam"])] = DAMPED_MOMENTS
    if structure.moments == "published":
        if structure.step_size == "constant":  # said with the moments, and never scales the update
            parts.remove(EXPLANATIONS["step_size", "constant"])
        else:
            parts[parts.index(EXPLANATIONS["moments", "published"])] = "the released code's moments"
    if structure.moments != "none":
        parts = [OTHER_VECTOR if p == EXPLANATIONS["reduction_ratio", "published"] else p for p in parts]
    parts += [CHANGED] if structure.parts else []
    origin = "" if name in RECIPES and not structure.parts else f"{_origin(structure)}: "
    return f"{origin}{'; '.join(parts)}."


def _origin(structure: Structure) -> str:
    """Name the built-in recipe that a structure differs least from, and the differences."""

    def differences(recipe: Recipe) -> list[str]:
        pairs = ((key, getattr(structure, key)) for key in CHOICES)
        return [f"{key} {value}" for key, value in pairs if getattr(recipe.choices, key) != value]

    hessian_free = [recipe for recipe in RECIPES.values() if recipe.hessian_free]
    nearest = min(hessian_free, key=lambda recipe: len(differences(recipe)))
    return f"{nearest.name} with {', '.join(differences(nearest)) or 'other fixed hyperparameters'}"


def explanations(identity: Mapping[str, Any]) -> dict[str, str]:
    """Explain the built-in recipes, and those that a study's identity describes by their structure."""
    known: dict[str, tuple[AnyStructure, Mapping[str, float]]] = {
        name: (recipe.structure, recipe.fixed) for name, recipe in RECIPES.items()
    }
    for name, described in identity.get("recipes", {}).items():
        try:
            known[name] = (structure_of(described["structure"]), dict(described.get("fixed", {})))
        except (KeyError, TypeError, ValueError):  # written by a version with other choices
            continue
    return {name: explain(name, *row) for name, row in known.items()}


def observed(trials: pd.DataFrame) -> str:
    """Say what was seen in one recipe's finished trials, from their records alone."""
    done = trials[trials["status"] != "failed"]
    n = len(done)
    if n == 0:
        return "No trial is finished."
    diverged = int((done["status"] == "diverged").sum())
    stalled = int(((done["status"] == "ok") & done["stalled"].astype(bool)).sum())
    trained = n - diverged - stalled
    what = [
        f"{count} {word}"
        for count, word in ((trained, "trained"), (stalled, "did not train"), (diverged, "diverged"))
        if count
    ]
    if len(what) == 1:
        return f"Seen: {'all ' if n > 1 else ''}{what[0]}."
    return f"Seen: of {n} trials, {', '.join(what)}."
