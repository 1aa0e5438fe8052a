"""Decorators that register hyperparameters, parts and recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

from ahf_cli.plugin.loading import F, check_name, enter, guarded
from ahf_cli.recipes.builtin import RECIPES, find_recipe
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Hyperparameter, Range, nearest
from ahf_cli.recipes.parts import SLOTS, Part
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import CHOICES, Whole


def hyperparameter(own: Hyperparameter) -> Hyperparameter:
    """Declare a hyperparameter that no built-in recipe has; a recipe that reads it names it in `search`."""
    check_name("hyperparameter", own.name)
    enter("hyperparameter", own.name, HYPERPARAMETERS)
    HYPERPARAMETERS[own.name] = own
    return own


def part(
    slot: str,
    name: str,
    *,
    formula: str = "",
    sentence: str = "",
    uses: Iterable[str] = (),
    needs: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Register a class or function as a choice of Hessian-free optimization.

    A configuration then has it as `recipes: {NAME: {base: hf, SLOT: name}}`.  Lists, documents and captions
    show it as a built-in part.  A class is made without arguments; a function is the part itself.  The slots
    and the protocols of their parts: docs/contributing.md.

    Args:
        slot: of the part, such as `step_size`.
        name: of the part.
        formula: its term of the update rule.
        sentence: its meaning for training, for captions.
        uses: names of the hyperparameters that it reads.
        needs: slot → the choice there that it works with only.

    Raises:
        ValueError: an unknown slot or hyperparameter, or a name that is taken.
    """
    check_name("part", name)
    open_slots = [key for key in SLOTS if key in CHOICES and key != "curvature_batch"]
    if slot not in open_slots:
        raise ValueError(f"part {name!r}: slot must be one of {', '.join(open_slots)}, got {slot!r}")
    for key in (read := tuple(uses)):
        if key not in HYPERPARAMETERS:
            raise ValueError(f"part {name!r}: uses: no hyperparameter {key!r}{nearest(key, HYPERPARAMETERS)}")
    allowed = {other: (choice,) for other, choice in (needs or {}).items()}
    for other, (choice,) in allowed.items():
        if choice not in SLOTS.get(other, {}):
            raise ValueError(f"part {name!r}: needs: there is no {choice!r} in slot {other!r}")

    def register(function: F) -> F:
        enter(slot, name, SLOTS[slot])
        SLOTS[slot][name] = Part(function, formula, sentence, read, allowed)
        return function

    return register


def recipe(
    name: str,
    *,
    base: str | None = None,
    search: Mapping[str, Range] | None = None,
    fixed: Mapping[str, float] | None = None,
    source: str = "a plug-in",
    **choices: object,
) -> Callable[[F], F]:
    """Register a recipe.

    With a base the function is (Optimizer) → Optimizer: it gets the composition of the base's structural
    choices, and returns it with parts replaced.  Without, it is () → an optimizer of its own, which has
    `init`, `step`, `independent_batch` and `curvature_batches` (a subclass of `ExplicitOptimizer`, say).

    Args:
        name: of the recipe, as `search.recipes` and the folders of its trials have it.
        base: name of a Hessian-free recipe.
        search: hyperparameters that are searched, with their ranges.
        fixed: hyperparameters that are not.
        source: where the update rule comes from.
        choices: structural choices that differ from the base's, such as `curvature="ggn"`.

    Raises:
        ValueError: an unknown base, choice or hyperparameter, or a range or value that is none.
    """
    check_name("recipe", name)
    searched, constant = dict(search or {}), dict(fixed or {})
    _check(name, searched, constant)

    def register(function: F) -> F:
        enter("recipe", name, RECIPES)
        try:
            RECIPES[name] = _made(function, name, base, searched, constant, source, choices)
        except ValueError:
            for slot in ("optimizer", "parts"):
                SLOTS[slot].pop(name, None)
            raise
        return function

    return register


def _check(name: str, searched: Mapping[str, Range], constant: Mapping[str, float]) -> None:
    for key in (*searched, *constant):
        if key not in HYPERPARAMETERS:
            raise ValueError(f"recipe {name!r}: no hyperparameter {key!r}{nearest(key, HYPERPARAMETERS)}")
        if key in searched and key in constant:
            raise ValueError(f"recipe {name!r}: {key} is both searched and fixed: remove one")
    for key, value in constant.items():
        HYPERPARAMETERS[key].check(value, f"recipe {name!r}: {key}")
    for key, found in searched.items():
        for end in (found.low, found.high):
            HYPERPARAMETERS[key].check(end, f"recipe {name!r}: {key}")
        if found.low > found.high or (found.log and found.low <= 0):
            rule = "0 < low ≤ high" if found.log else "low ≤ high"
            raise ValueError(f"recipe {name!r}: {key} needs {rule}, got {found.low:g} and {found.high:g}")


def _made(
    function: Callable[..., Any], name: str, base: str | None, searched: Mapping[str, Range],
    constant: Mapping[str, float], source: str, choices: Mapping[str, object],
) -> Recipe:  # fmt: skip
    make, own = guarded("recipe", name, _optimizer(function)), (*searched, *constant)
    if base is None:
        if choices:
            raise ValueError(f"recipe {name!r}: {', '.join(choices)} need a base whose choices they change")
        SLOTS["optimizer"][name] = Part(make, uses=own)
        return Recipe(name, Whole("optimizer", name), constant, (), searched, source)
    derived = find_recipe(base).derive(name, choices)
    if before := SLOTS["parts"].get(derived.choices.parts):
        first, last = before.find(), make

        def make(optimizer: Any) -> Any:
            return last(first(optimizer))

        own = tuple(dict.fromkeys([*before.uses, *own]))
    SLOTS["parts"][name] = Part(make, uses=own)
    changed = replace(derived.choices, parts=name)
    values = {key: value for key, value in {**derived.fixed, **constant}.items() if key not in searched}
    ranges = {**derived.ranges, **searched}
    return replace(derived, structure=changed, fixed=values, ranges=ranges, source=source)


def _optimizer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its result checked."""

    @wraps(function)
    def make(*args: Any) -> Any:
        made = function(*args)
        if not (hasattr(made, "init") and hasattr(made, "step")):
            raise TypeError(f"the function must return an optimizer, got {made!r}")
        return made

    return make
