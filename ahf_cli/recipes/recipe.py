"""A recipe: its structure, and its hyperparameters, fixed or searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Range, middle, nearest
from ahf_cli.recipes.structure import ALONE, CHOICES, AnyStructure, Structure


@dataclass(frozen=True)
class Recipe:
    """A named optimizer: a structure, and the values of its fixed hyperparameters."""

    name: str
    structure: AnyStructure
    fixed: Mapping[str, float] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    """names of the recipes from which this one is derived, nearest first"""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """search ranges that replace the ranges of `HYPERPARAMETERS`"""
    source: str = ""
    """source of the update rule"""

    @property
    def hessian_free(self) -> bool:
        """Whether the recipe is Hessian-free, and so made of structural choices."""
        return self.structure.hessian_free

    @property
    def choices(self) -> Structure:
        """Structural choices; raises ValueError for a recipe that is not Hessian-free."""
        if not isinstance(self.structure, Structure):
            raise ValueError(f"recipe {self.name!r} is not Hessian-free: it solves no linear system")
        return self.structure

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names of all hyperparameters, free and fixed."""
        return self.structure.hyperparameters()

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the hyperparameters that each trial chooses."""
        return tuple(name for name in self.hyperparameters if name not in self.fixed)

    def complete(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return all hyperparameters: the given value, else the fixed value, else the default.

        Raises ValueError for a name that is not in the recipe, or a value outside its interval.
        """
        for name, value in values.items():
            if name not in self.hyperparameters:
                raise ValueError(
                    f"{self.name} has no hyperparameter {name!r}{nearest(name, self.hyperparameters)}"
                )
            HYPERPARAMETERS[name].check(value)
        return {
            name: float(values.get(name, self.fixed.get(name, HYPERPARAMETERS[name].default)))
            for name in self.hyperparameters
        }

    def derive(self, name: str, changes: Mapping[str, object]) -> Recipe:
        """Return this recipe under a new name with some choices or fixed hyperparameters changed.

        Raises ValueError naming the first change that is unknown, invalid or without effect in the result.
        """
        structure: dict[str, Any] = {}
        fixed: dict[str, float] = {}
        choices = CHOICES if self.hessian_free else ALONE
        for key, value in changes.items():
            if key in choices:
                structure[key] = value
            elif key in HYPERPARAMETERS:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"{key} must be a number, got {value!r}")
                fixed[key] = HYPERPARAMETERS[key].check(float(value))
            elif key == "gradient_clipping":
                raise ValueError(
                    f"gradient_clipping is for first-order recipes, and {self.name} is Hessian-free: take "
                    "clipping, the limit of an update"
                )
            else:
                raise ValueError(f"unknown choice {key!r}{nearest(key, [*choices, *HYPERPARAMETERS])}")
        own = replace(self.structure, **structure)  # type: ignore[type-var]
        result = Recipe(name, own, {}, (self.name, *self.lineage), self.ranges, self.source)
        if own.scheduled and not self.hessian_free and "lr" not in result.hyperparameters:
            raise ValueError(f"schedule and warmup have no effect in {name!r}, which has no lr")
        for key in fixed:
            if key not in result.hyperparameters:
                raise ValueError(f"{key} has no effect in {name!r}{nearest(key, result.hyperparameters)}")
        kept = {k: v for k, v in {**self.fixed, **fixed}.items() if k in result.hyperparameters}
        if self.hessian_free and "mu" in result.hyperparameters:
            # The paper fixes μ and never searches it: so do all derived recipes.
            kept.setdefault("mu", HYPERPARAMETERS["mu"].default)
        return replace(result, fixed=kept)


def search_range(recipe: Recipe, name: str) -> Range | None:
    """Return the search range of a hyperparameter: the recipe's, else Appendix B's; None if it is fixed."""
    return None if name in recipe.fixed else recipe.ranges.get(name) or HYPERPARAMETERS[name].search


MILD = {"lr": 0.01, "damping": 30.0}
"""α and λ₀ of a single run of a recipe that diverges with larger steps: see `single_run`."""


def single_run(recipe: Recipe) -> dict[str, float]:
    """Return all hyperparameters of a single run whose user gave none.

    They are the defaults.  If a search range of the recipe excludes the default, its middle replaces it.  A
    recipe that is not Hessian-free, or has constant damping, takes the middle of every range.

    A constant step size with the exact Hessian of a second batch takes `MILD` instead.  On LeNet that recipe
    ends near the loss of guessing, or diverges: for α ≥ 0.1 within 60 steps, for α = 0.03 within 150.  With α
    = 0.01 and λ₀ = 30 its loss was 1.57 after 300 steps.
    """
    if not recipe.hessian_free or recipe.choices.damping_rule == "constant":
        ranges = {name: found for name in recipe.free if (found := search_range(recipe, name))}
        return recipe.complete({name: middle(found) for name, found in ranges.items()})
    s = recipe.choices
    mild = s.curvature == "hessian" and s.curvature_batch == "independent" and "lr" in recipe.free
    own = {
        name: middle(found)
        for name, found in recipe.ranges.items()
        if name in recipe.free and not found.low <= HYPERPARAMETERS[name].default <= found.high
    }
    return recipe.complete(own | {k: v for k, v in MILD.items() if mild and k in recipe.free})
