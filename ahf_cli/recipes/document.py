"""Recipes in words: update rules, sentences for captions, and the page docs/recipes.md."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.recipes.part import Part
from ahf_cli.recipes.recipe import Recipe, search_range
from ahf_cli.recipes.structure import CHOICES, AnyStructure, Structure, all_parts, choices_of, structure_of

ROOT = Path(__file__).parents[2]
TERMS = (
    "curvature", "solver", "damping_matrix", "moments", "step_size", "preconditioner", "backtracking",
    "line_search", "clipping", "parts", "gradient_clipping", "method", "diagonal", "least_squares",
    "optimizer", "schedule", "warmup", "average",
)  # fmt: skip
"""Slots in the order of their terms in an update rule."""


def rule(recipe: Recipe) -> str:
    """Return a recipe's update rule; g = ∇h on the gradient batch."""
    parts = recipe.structure.parts_used
    terms = {slot: formula(parts[slot]) for slot in TERMS if slot in parts}
    if "curvature_batch" in parts:
        terms["curvature"] += f" {parts['curvature_batch'].formula}"
    growth = recipe.structure.batch_growth
    grown = f"batches grow to {growth} mini-batches" if growth > 1 else ""
    return ";  ".join(term for term in (*terms.values(), grown) if term)


def formula(part: Part) -> str:
    """Return a part's term of the update rule; default for a plug-in: the first line of its docstring."""
    if part.formula or isinstance(part.where, str):
        return part.formula
    text = inspect.getdoc(part.where) or ""
    return text.partition("\n")[0].rstrip(".") or "a plug-in's own"


def sentence(name: str, structure: AnyStructure, fixed: Mapping[str, float] = MappingProxyType({})) -> str:
    """Return one sentence about a recipe, from its structural choices and fixed hyperparameters."""
    said = [part.said(structure.chosen, fixed) for part in structure.parts_used.values()]
    said += [f"batches grow to {structure.batch_growth} mini-batches"] if structure.batch_growth > 1 else []
    said += ["parts changed by a plug-in"] if structure.chosen.get("parts") else []
    words = "; ".join(text for text in said if text) or "an optimizer of a plug-in"
    known = name in RECIPES and not structure.chosen.get("parts")
    origin = "" if known or not structure.hessian_free else f"{_origin(structure)}: "
    return f"{origin}{words}."


def _origin(structure: AnyStructure) -> str:
    """Return the name of the nearest built-in recipe, and its differences from a structure."""

    def differences(recipe: Recipe) -> list[str]:
        own = recipe.structure.chosen
        return [f"{k} {structure.chosen[k]}" for k in CHOICES if own[k] != structure.chosen[k]]

    hessian_free = [recipe for recipe in RECIPES.values() if recipe.hessian_free]
    nearest = min(hessian_free, key=lambda recipe: len(differences(recipe)))
    return f"{nearest.name} with {', '.join(differences(nearest)) or 'other fixed hyperparameters'}"


def sentences(identity: Mapping[str, Any]) -> dict[str, str]:
    """Return a sentence for each built-in recipe, and for each recipe in a study's identity."""
    known: dict[str, tuple[AnyStructure, Mapping[str, float]]] = {
        name: (recipe.structure, recipe.fixed) for name, recipe in RECIPES.items()
    }
    for name, described in identity.get("recipes", {}).items():
        try:
            known[name] = (structure_of(described["structure"]), dict(described.get("fixed", {})))
        except (KeyError, TypeError, ValueError):  # written by a version with other choices
            continue
    return {name: sentence(name, *row) for name, row in known.items()}


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
        "code": [f"{file}:{name}" for name, file in code(recipe)],
    }  # fmt: skip


def code(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield name and file of each class and function in the composition of a recipe."""
    if recipe.hessian_free:
        yield "Optimizer", "ahf_cli/optim/optimizer.py"
    for part in recipe.structure.parts_used.values():
        if part.where and part.formula + str(part.sentence) + "".join(part.uses):
            name, file = part.place
            yield name, os.path.relpath(file, ROOT) if file.startswith(f"{ROOT}{os.sep}") else file


def parts_document() -> list[dict[str, Any]]:
    """Return all parts as plain data."""
    return [
        {
            "slot": slot, "name": name, "formula": formula(part),
            "sentence": part.said(Structure().chosen, {}), "hyperparameters": list(part.uses),
            "code": ":".join(reversed(part.place)) if part.where else "",
        }
        for slot, name, part in all_parts()
    ]  # fmt: skip


CLASSES = """\
## Any optimizer class

A class of an installed package stands in place of a recipe's name. It must be a subclass of
`torch.optim.Optimizer` with a `step()`. A `step` that needs a closure gets one. Each call counts as a
gradient.

```sh
ahf train torch.optim.NAdam -p lr=0.002
ahf search --config own.yaml
```

```yaml
# own.yaml
search:
  recipes: [fast_sgd]
recipes:
  fast_sgd: {optimizer: torch.optim.SGD, fixed: {momentum: 0.9, nesterov: true}}
spaces:
  fast_sgd: {lr: {low: 0.001, high: 0.3, log: true}, weight_decay: {low: 1e-6, high: 1e-3, log: true}}
```

Real arguments of the class are hyperparameters, and elements of a tuple are `betas.0` and `betas.1`. They are
fixed at the defaults of the class, except `lr`, and free with a range in `spaces`. All others are settings in
`fixed`. `ahf config recipes CLASS` lists both. Before a run the class takes a few small steps. It is refused
if one fails, or if a resumed run would differ. A class in a file of yours needs a [plug-in](plugins.md)."""


def page() -> str:
    """Return docs/recipes.md."""
    lines = [
        "# Recipes",
        "",
        "Written by `make docs` from the declarations in `ahf_cli/recipes`. g is the gradient of",
        "the mini-batch's mean loss h, u the update θ ← θ + u, δ the direction and λ the damping.",
        "Hats are bias corrections.",
        "The exact rules are in [algorithms.md](algorithms.md).",
    ]
    for recipe in RECIPES.values():
        lines += ["", f"## `{recipe.name}`", "", rule(recipe), "", f"Source: {recipe.source}.", ""]
        said = ", ".join(f"`{key}` {value}" for key, value in choices_of(recipe.structure).items())
        lines += [f"Structure: {said}.", "", *_hyperparameters(recipe), ""]
        lines.append(f"Code: {', '.join(f'[`{name}`](../{file})' for name, file in code(recipe))}.")
    lines += ["", *CLASSES.splitlines()]
    lines += ["", "## Parts", "", "Every choice by its slot; a recipe has one part in each.", "", *_parts()]
    return "\n".join(lines) + "\n"


def _hyperparameters(recipe: Recipe) -> list[str]:
    rows = [["name", "symbol", "meaning", "default", "valid", "searched"]]
    for h in document(recipe)["hyperparameters"]:
        low, high, log = h["search"] or (0, 0, False)
        searched = f"[{low:g}, {high:g}]{' log' if log else ''}" if h["search"] else "fixed"
        default = h["default"] if h["value"] is None else h["value"]
        rows.append([f"`{h['name']}`", h["symbol"], h["meaning"], f"{default:g}", h["valid"], searched])
    return _markdown(rows)


def _parts() -> list[str]:
    rows = [["slot", "part", "rule", "meaning", "hyperparameters"]]
    for p in parts_document():
        symbols = ", ".join(HYPERPARAMETERS[name].symbol for name in p["hyperparameters"])
        rows.append([f"`{p['slot']}`", f"`{p['name']}`", p["formula"], p["sentence"], symbols])
    return _markdown(rows)


def _markdown(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
