"""`ahf config recipes`: every recipe with its update rule, hyperparameters and source, and where it lives."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.recipes.recipe import RECIPES, Recipe, search_range
from ahf_cli.recipes.structure import PARTS, DiagonalHessian, FirstOrder, Own, Structure, choices_of

RULES = {
    "sgd_momentum": "b ← γ b + g;  u = −α b",
    "nesterov": "b ← γ b + g;  u = −α (g + γ b)",
    "adagrad": "s ← s + g²;  u = −α g / (√s + μ)",
    "rmsprop": "v ← β₂ v + (1−β₂) g²;  u = −α g / (√v + μ)",
    "adam": "m ← β₁ m + (1−β₁) g;  v ← β₂ v + (1−β₂) g²;  u = −α m̂ / (√v̂ + μ)",
    "adahessian": "D = mean over kernels of z ⊙ Hz, z = ±1;  m ← β₁ m + (1−β₁) g;  v ← β₂ v + (1−β₂) D²;  "
    "u = −α m̂ / (v̂^(k/2) + μ)",
}
_MATRIX = {"hessian": "B = ∇²h", "ggn": "B = Jᵀ H_L J", "fisher": "B = F"}
_UPDATE = {
    "none": "u = α δ",
    "adam": "m ← β₁ m + (1−β₁) δ;  v ← β₂ v + (1−β₂) δ²;  u = α m̂ / (√v̂ + μ)",
    "published": "m ← δ + β₁/(1−β₁) m;  v ← δ² + β₂/(1−β₂) v;  u = α m / (√v + μ)",
}
_CLIPPING = {"radius": "‖u‖ cut to r", "direction": "‖u‖ cut to ‖δ‖"}
_STEP = {
    "constant": "",
    "hyperbolic": "α_t = α / (1 + (t−1)/τ)",
    "eq3": "α by Eq. 3",
    "eq3_repaired": "α by Eq. 3 with the repaired bound",
}


def rule(recipe: Recipe) -> str:
    """Write a recipe's update rule; g = ∇h on the gradient batch."""
    s = recipe.structure
    if isinstance(s, FirstOrder):
        return RULES[s.method]
    if isinstance(s, DiagonalHessian):
        return RULES[s.diagonal]
    if isinstance(s, Own):
        return _said(s.optimizer)
    batch = "a second batch" if s.curvature_batch == "independent" else "the gradient's batch"
    parts = [
        f"{_MATRIX[s.curvature]} on {batch}",
        "(B + λI) δ = −g by CG",
        _UPDATE[s.moments],
        _STEP[s.step_size],
    ]
    parts += ["preconditioned"] if s.preconditioner != "none" else []
    parts += ["the best iterate of CG"] if s.backtracking != "none" else []
    parts += ["α shortened by a line search"] if s.line_search != "none" else []
    parts += [_CLIPPING[s.clipping]] if s.clipping != "none" else []
    parts += [_said(s.parts)] if s.parts else []
    return ";  ".join(part for part in parts if part)


def _said(name: str) -> str:
    """Return the first line of what a plug-in says of its code."""
    text = inspect.getdoc(PARTS[name].make) or ""
    return text.partition("\n")[0].rstrip(".") or "a plug-in's own"


def document(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data."""
    hyperparameters = []
    for name in recipe.hyperparameters:
        h, found = HYPERPARAMETERS[name], search_range(recipe, name)
        hyperparameters.append(
            {
                "name": name, "symbol": h.symbol, "meaning": h.help, "valid": h.rule(),
                "value": recipe.fixed.get(name), "default": h.default,
                "search": None if found is None else [found.low, found.high, found.log],
            }
        )  # fmt: skip
    return {
        "name": recipe.name, "rule": rule(recipe), "source": recipe.source,
        "structure": choices_of(recipe.structure), "hyperparameters": hyperparameters,
        "code": [f"{file}:{line}" for _, file, line in code(recipe)],
    }  # fmt: skip


def code(recipe: Recipe) -> Iterator[tuple[str, str, int]]:
    """Name the classes that a recipe is composed of, with file and line."""
    from ahf_cli.optim import compose

    core = compose(recipe.structure)
    parts: list[object] = [core]
    if isinstance(recipe.structure, Structure):
        slots = ("curvature", "solver", "transform", "step_size", "reduction_ratio", "damping_rule")
        parts += [getattr(core, slot) for slot in (*slots, "preconditioner")]
        parts.append(getattr(getattr(core, "solver", None), "rules", None))
    root = Path(__file__).parents[2]
    for part in parts:
        kind: Any = part if isinstance(part, type) or inspect.isfunction(part) else type(part)
        if part is not None:
            file = Path(inspect.getfile(kind))
            file = file.relative_to(root) if file.is_relative_to(root) else file
            yield kind.__name__, file.as_posix(), inspect.getsourcelines(kind)[1]


def page() -> str:
    """Return docs/recipes.md."""
    lines = [
        "# Recipes",
        "",
        "Written by `make docs` from the declarations in `ahf_cli/recipes/recipe.py`. g is the gradient of",
        "the mini-batch's mean loss h, u the update θ ← θ + u, δ the direction, λ the damping; hats are bias",
        "corrections.",
        "The exact rules are in [algorithms.md](algorithms.md).",
    ]
    for recipe in RECIPES.values():
        lines += ["", f"## `{recipe.name}`", "", rule(recipe), "", f"Source: {recipe.source}.", ""]
        said = ", ".join(f"`{key}` {value}" for key, value in choices_of(recipe.structure).items())
        lines += [f"Structure: {said}.", "", *_table(recipe), ""]
        where = [f"[`{name}`](../{file}#L{line})" for name, file, line in code(recipe)]
        lines.append(f"Code: {', '.join(where)}.")
    return "\n".join(lines) + "\n"


def _table(recipe: Recipe) -> list[str]:
    rows = [["name", "symbol", "meaning", "default", "valid", "searched"]]
    for h in document(recipe)["hyperparameters"]:
        low, high, log = h["search"] or (0, 0, False)
        searched = f"[{low:g}, {high:g}]{' log' if log else ''}" if h["search"] else "fixed"
        default = h["default"] if h["value"] is None else h["value"]
        rows.append([f"`{h['name']}`", h["symbol"], h["meaning"], f"{default:g}", h["valid"], searched])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
