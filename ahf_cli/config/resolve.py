"""Recipes and search spaces of a configuration, resolved from what they are derived from."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ahf_cli.config.schema import NAME, Bounds, KeyPath, Problem, show
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Hyperparameter, Range, nearest
from ahf_cli.recipes.recipe import Recipe, search_range


@dataclass(frozen=True)
class Resolved:
    """A recipe, and the search ranges that a configuration gives to it or to its bases."""

    recipe: Recipe
    """without the fixed hyperparameters that `given` makes free"""
    given: Mapping[str, Range] = field(default_factory=dict)

    @property
    def space(self) -> dict[str, Range]:
        """Ranges of the free hyperparameters: the given one, else the recipe's or that of Appendix B."""
        ranges = {name: self.given.get(name) or search_range(self.recipe, name) for name in self.recipe.free}
        return {name: found for name, found in ranges.items() if found}


def resolve_recipes(
    recipes: Mapping[str, Mapping[str, Any]],
    spaces: Mapping[str, Mapping[str, Bounds]],
    broken: Collection[str] = (),
) -> tuple[dict[str, Resolved | None], list[Problem]]:
    """Resolve built-in and derived recipes, and list what is wrong with them.

    A recipe with a problem is None, as are those based on it; so are the names in `broken`, whose problem is
    known already.
    """
    resolver = _Resolver(recipes, spaces, broken)
    known = tuple(dict.fromkeys((*RECIPES, *recipes, *broken)))
    for name in known:
        resolver.visit(name, ())
    for name in spaces:
        if name not in known:
            resolver.report(("spaces", name), f"unknown recipe{nearest(name, known, pluggable=True)}")
    return {name: resolver.done[name] for name in known}, resolver.problems


class _Resolver:
    """Walks from each recipe to its base, each recipe once."""

    def __init__(
        self,
        recipes: Mapping[str, Mapping[str, Any]],
        spaces: Mapping[str, Mapping[str, Bounds]],
        broken: Collection[str],
    ):
        self.recipes, self.spaces = recipes, spaces
        self.done: dict[str, Resolved | None] = dict.fromkeys(broken)
        self.problems: list[Problem] = []

    def report(self, path: KeyPath, message: str) -> None:
        """Note a problem."""
        self.problems.append((path, message))

    def visit(self, name: str, trail: tuple[str, ...]) -> Resolved | None:
        """Resolve a known recipe; `trail` are the recipes that are being resolved, the last based on it."""
        if name not in self.done:
            problem = self._name_problem(name)
            if problem:
                self.report(("recipes", name), problem)
            if name in RECIPES:
                self.done[name] = self._with_space(Resolved(RECIPES[name]), {})
            else:
                self.done[name] = None if problem else self._derived(name, (*trail, name))
        return self.done[name]

    def _name_problem(self, name: str) -> str | None:
        if name in RECIPES:
            return "is the name of a built-in recipe: choose another" if name in self.recipes else None
        return None if re.fullmatch(NAME, name) else f"the name must match {NAME}, got {show(name)}"

    def _derived(self, name: str, trail: tuple[str, ...]) -> Resolved | None:
        base = self._base(name, trail)
        if base is None:
            return None
        changes = {key: _number(key, value) for key, value in self.recipes[name].items() if key != "base"}
        wrong = _wrong_changes(base.recipe, name, changes)
        for key, message in wrong.items():
            self.report(("recipes", name, key), message)
        if wrong:
            return None
        recipe = base.recipe.derive(name, changes)
        given = {k: v for k, v in base.given.items() if k in recipe.hyperparameters and k not in changes}
        return self._with_space(Resolved(recipe, given), changes)

    def _base(self, name: str, trail: tuple[str, ...]) -> Resolved | None:
        path, base = ("recipes", name, "base"), self.recipes[name].get("base")
        known = [*RECIPES, *self.recipes, *self.done]
        if base is None:
            self.report(path, "must be the name of the recipe that this one is derived from, got nothing")
        elif base not in known:
            hint = nearest(base, dict.fromkeys(known), pluggable=True) if isinstance(base, str) else ""
            self.report(path, f"unknown recipe {show(base)}{hint}")
        elif base in trail:
            circle = " → ".join((*trail[trail.index(base) :], base))
            self.report(path, f"must not lead back to the recipe itself, got {circle}")
        else:
            return self.visit(base, trail)
        return None

    def _with_space(self, resolved: Resolved, changes: Mapping[str, object]) -> Resolved:
        """Add the ranges that `spaces` gives to this very recipe."""
        recipe, given = resolved.recipe, dict(resolved.given)
        inherited = {**{k: h.search for k, h in HYPERPARAMETERS.items()}, **recipe.ranges, **given}
        for name, bounds in self.spaces.get(recipe.name, {}).items():
            path = ("spaces", recipe.name, name)
            if name not in recipe.hyperparameters:
                hint = nearest(name, recipe.hyperparameters)
                self.report(path, f"{recipe.name} has no such hyperparameter{hint}")
            elif name in changes:
                self.report(path, f"is fixed at {show(changes[name])} by recipes.{recipe.name}: remove one")
            elif found := self._range(path, bounds, HYPERPARAMETERS[name], inherited[name]):
                given[name] = found
        fixed = {name: value for name, value in recipe.fixed.items() if name not in given}
        return Resolved(replace(recipe, fixed=fixed), given)

    def _range(
        self, path: KeyPath, bounds: Bounds, h: Hyperparameter, inherited: Range | None
    ) -> Range | None:
        low = bounds.low if bounds.low is not None or not inherited else inherited.low
        high = bounds.high if bounds.high is not None or not inherited else inherited.high
        log = bounds.log if bounds.log is not None else bool(inherited and inherited.log)
        if low is None or high is None:
            self.report(path, f"needs low and high, since {h.name} has no range to inherit")
            return None
        ends = {end: value for end, value in (("low", low), ("high", high)) if not h.accepts(value)}
        for end, value in ends.items():
            self.report((*path, end), f"must be in {h.rule()}, got {value:g}")
        if not ends and low > high:
            self.report(path, f"low must be ≤ high, got low {low:g} and high {high:g}")
        elif not ends and log and low <= 0:
            self.report(path, f"low must be > 0 where log is true, got {low:g}")
        elif not ends:
            return Range(low, high, log)
        return None


def _number(key: str, value: object) -> object:
    """Return an integer that is given for a real number as one."""
    if isinstance(value, bool) or not (key in HYPERPARAMETERS or key == "warm_start_decay"):
        return value
    try:
        return float(value) if isinstance(value, int) else value
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _wrong_changes(base: Recipe, name: str, changes: Mapping[str, object]) -> dict[str, str]:
    """Try each change alone, and hyperparameters on top of the valid choices, so that all errors show."""
    wrong: dict[str, str] = {}
    choices: dict[str, object] = {}
    for key in sorted(changes, key=HYPERPARAMETERS.__contains__):
        try:
            base.derive(name, {**choices, key: changes[key]})
        except ValueError as error:
            wrong[key] = str(error)
        else:
            if key not in HYPERPARAMETERS:
                choices[key] = changes[key]
    return wrong
