"""A recipe: a structure, and the hyperparameters that it keeps fixed or searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Range, middle, nearest
from ahf_cli.recipes.structure import CHOICES, AnyStructure, Structure


@dataclass(frozen=True)
class Recipe:
    """A named optimizer: a structure, and the hyperparameters that it keeps fixed."""

    name: str
    structure: AnyStructure
    fixed: Mapping[str, float] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    """names of the recipes that this one is derived from, nearest first"""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """search ranges of its own, where those of `HYPERPARAMETERS` are not for it"""
    source: str = ""
    """where the update rule comes from"""

    @property
    def hessian_free(self) -> bool:
        """Whether it is a recipe of Hessian-free optimization, made of structural choices."""
        return self.structure.hessian_free

    @property
    def choices(self) -> Structure:
        """Its structural choices; raises ValueError where it has none, being no Hessian-free recipe."""
        if not isinstance(self.structure, Structure):
            raise ValueError(f"recipe {self.name!r} is not Hessian-free: it solves no linear system")
        return self.structure

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names of all hyperparameters, free and fixed."""
        return self.structure.hyperparameters()

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the hyperparameters that a trial chooses."""
        return tuple(name for name in self.hyperparameters if name not in self.fixed)

    def complete(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return all hyperparameters: the given values, else the fixed ones, else the defaults.

        Raises ValueError for a name that the recipe does not have, or a value outside its interval.
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
        choices = CHOICES if self.hessian_free else ()
        for key, value in changes.items():
            if key in choices:
                structure[key] = value
            elif key in HYPERPARAMETERS:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"{key} must be a number, got {value!r}")
                fixed[key] = HYPERPARAMETERS[key].check(float(value))
            else:
                raise ValueError(f"unknown choice {key!r}{nearest(key, [*choices, *HYPERPARAMETERS])}")
        own = replace(self.structure, **structure)  # type: ignore[type-var]
        result = Recipe(name, own, {}, (self.name, *self.lineage), self.ranges, self.source)
        for key in fixed:
            if key not in result.hyperparameters:
                raise ValueError(f"{key} has no effect in {name!r}{nearest(key, result.hyperparameters)}")
        kept = {k: v for k, v in {**self.fixed, **fixed}.items() if k in result.hyperparameters}
        if self.hessian_free and "mu" in result.hyperparameters:
            kept.setdefault("mu", HYPERPARAMETERS["mu"].default)
        return replace(result, fixed=kept)


def search_range(recipe: Recipe, name: str) -> Range | None:
    """Return the search range of a hyperparameter: the recipe's own, else Appendix B's; None where fixed."""
    return None if name in recipe.fixed else recipe.ranges.get(name) or HYPERPARAMETERS[name].search


MILD = {"lr": 0.01, "damping": 30.0}
"""α and λ₀ of a single run of a recipe that larger steps send off: see `single_run`"""


def single_run(recipe: Recipe) -> dict[str, float]:
    """Return all hyperparameters of a run for which nobody chose any.

    They are the defaults, or the middle of a range of the recipe's own that its default lies outside; but for
    a constant step with the exact Hessian of a second batch.  On LeNet that
    ends near or above the loss of chance, or diverges, for α ≥ 0.1 within 60 steps and for α = 0.03 within
    150; α = 0.01 with λ₀ = 30 had a loss of 1.57 after 300.
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
