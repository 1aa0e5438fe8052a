"""Rules between keys of a configuration; its recipes and search spaces, resolved from their bases."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ahf_cli.config.schema import NAME, STORED, Bounds, KeyPath, Problem, SearchSection, Settings, show
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.classes import from_mapping
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Hyperparameter, Range, nearest
from ahf_cli.recipes.recipe import Recipe, search_range
from ahf_cli.tasks.catalogue import LOSSES, MODELS
from ahf_cli.tasks.datasets import DATA_SETS, training_size
from ahf_cli.tasks.metrics import metrics_of


@dataclass(frozen=True)
class Resolved:
    """A recipe, and the search ranges that a configuration gives for it or its bases."""

    recipe: Recipe
    """the recipe, without fixed values of hyperparameters in `given`"""
    given: Mapping[str, Range] = field(default_factory=dict)

    @property
    def space(self) -> dict[str, Range]:
        """Ranges of the free hyperparameters: the given one, else the recipe's, else Appendix B's."""
        ranges = {name: self.given.get(name) or search_range(self.recipe, name) for name in self.recipe.free}
        return {name: found for name, found in ranges.items() if found}


def resolve_recipes(
    recipes: Mapping[str, Mapping[str, Any]],
    spaces: Mapping[str, Mapping[str, Bounds]],
    broken: Collection[str] = (),
) -> tuple[dict[str, Resolved | None], list[Problem]]:
    """Resolve built-in and derived recipes, and list their problems.

    A recipe with a problem is None, as is each one based on it.  So are `broken` ones, of known problems.
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
    """A walk from each recipe to its base; each recipe is resolved once."""

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
        """Add a problem."""
        self.problems.append((path, message))

    def visit(self, name: str, trail: tuple[str, ...]) -> Resolved | None:
        """Resolve a known recipe; `trail` are the unfinished recipes, the last one based on it."""
        if name not in self.done:
            if name not in self.recipes:
                self.done[name] = self._with_space(Resolved(RECIPES[name]), {})
                return self.done[name]
            problem, before = self._name_problem(name), list(self.problems)
            self.done[name] = self._derived(name, (*trail, name))
            if problem:  # one line for a wrong name
                self.problems = [*before, (("recipes", name), problem)]
        return self.done[name]

    def _name_problem(self, name: str) -> str | None:
        if name in RECIPES and not STORED.get():
            return "is the name of a built-in recipe: choose another"
        return None if re.fullmatch(NAME, name) else f"the name must match {NAME}, got {show(name)}"

    def _derived(self, name: str, trail: tuple[str, ...]) -> Resolved | None:
        if "optimizer" in self.recipes[name]:
            return self._of_class(name)
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

    def _of_class(self, name: str) -> Resolved | None:
        mapping = self.recipes[name]
        try:
            recipe = from_mapping(name, mapping, self.spaces.get(name, {}))
        except ValueError as error:
            self.report(("recipes", name), str(error))
            return None
        given = mapping.get("fixed", {})
        return self._with_space(Resolved(recipe), given)

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
        """Add the ranges in `spaces` for this recipe itself."""
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
    """Return an integer as a float where a real number is expected."""
    if isinstance(value, bool) or not (key in HYPERPARAMETERS or key == "warm_start_decay"):
        return value
    try:
        return float(value) if isinstance(value, int) else value
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _wrong_changes(base: Recipe, name: str, changes: Mapping[str, object]) -> dict[str, str]:
    """Return all errors of changes: choices are tried one by one, hyperparameters with the valid choices."""
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


def cross_problems(config: Settings, known: set[KeyPath]) -> list[Problem]:
    """List the problems between keys; `known` are paths whose problems are already listed."""
    broken = {path[1] for path in known if path[0] == "recipes" and len(path) > 1}
    resolved, problems = resolve_recipes(config.recipes, config.spaces, broken)
    names: list[tuple[KeyPath, str]] = [(("search", "recipes"), name) for name in config.search.recipes]
    for path, name in [*names, (("prerun", "recipe"), config.prerun.recipe)]:
        if name not in resolved and ("recipes",) not in known:
            problems.append((path, f"unknown recipe {show(name)}{nearest(name, resolved, pluggable=True)}"))
    chosen = resolved.get(config.prerun.recipe)
    if chosen is not None and not chosen.recipe.hessian_free:
        rule = "must be a Hessian-free recipe, whose directions σ and L are estimated from"
        problems.append((("prerun", "recipe"), f"{rule}, got {show(config.prerun.recipe)}"))
    for name in config.train.longer:
        if name not in resolved and ("recipes",) not in known:
            problems.append(
                (("train", "longer", name), f"unknown recipe{nearest(name, resolved, pluggable=True)}")
            )
    for name in dict.fromkeys(config.search.recipes):
        if config.search.recipes.count(name) > 1:
            problems.append((("search", "recipes"), f"names must not repeat, got {show(name)} twice"))
    problems += _search_problems(config)
    problems += _task_problems(config, resolved)
    known_data = config.task.data in DATA_SETS
    target = config.compare.target
    if target is not None and known_data and config.task.loss in LOSSES:
        top = metrics_of(config.task.model_dump()).headline.top
        if not 0 < target < top:
            problems.append((("compare", "target"), f"must be a number in (0, {top:g}), got {target:g}"))
    whole = training_size(config.task.data, config.task.split) if known_data else 10**9
    if config.task.subset is not None and config.task.subset > whole:
        rule = f"must be ≤ {whole}, the training images of task.split {config.task.split}"
        problems.append((("task", "subset"), f"{rule}, got {config.task.subset}"))
    if config.task.subset is not None and config.task.subset < config.task.batch_size:
        rule = f"must be ≥ task.batch_size ({config.task.batch_size})"
        problems.append((("task", "subset"), f"{rule}, got {config.task.subset}"))
    most = max(1, (config.task.subset or whole) // config.task.batch_size)
    for name in config.recipes:
        found = resolved.get(name)
        if found and (growth := found.recipe.structure.batch_growth) > most:
            rule = f"must be ≤ {most}, the mini-batches of an epoch"
            problems.append((("recipes", name, "batch_growth"), f"{rule}, got {growth}"))
    return problems


def _task_problems(config: Settings, resolved: Mapping[str, Resolved | None]) -> list[Problem]:
    """List unknown names of the task, and recipes whose curvature the loss does not support."""
    problems: list[Problem] = []
    for key, known in (("data", DATA_SETS), ("model", MODELS), ("loss", LOSSES)):
        name = getattr(config.task, key)
        if name not in known:
            rule = f"must be one of {', '.join(known)}, got {show(name)}"
            problems.append((("task", key), rule + _meant(name, known)))
    loss, data = LOSSES.get(config.task.loss), DATA_SETS.get(config.task.data)
    if loss and data and loss.classes != (data.classes is not None):
        kind = "classes" if loss.classes else "numbers"
        rule = f"is a loss for targets that are {kind}, and those of task.data {config.task.data} are not"
        problems.append((("task", "loss"), f"{config.task.loss} {rule}"))
    elif data and data.losses and loss and config.task.loss not in data.losses:
        rule = f"must be {' or '.join(data.losses)} for task.data {config.task.data}"
        problems.append((("task", "loss"), f"{rule}, got {show(config.task.loss)}"))
    model = MODELS.get(config.task.model)
    if model and data and (misfit := model.misfit(data.shape, data.outputs, data.symbols)):
        rule = f"{config.task.model} {misfit}, in task.data {config.task.data}"
        problems.append((("task", "model"), rule))
    if model and data and model.only != data.model:
        rule = f"must be {data.model}" if data.model else f"must be no fit, as {model.only} is,"
        line = f"{rule} for task.data {config.task.data}, got {show(config.task.model)}"
        problems.append((("task", "model"), line))
    if loss and data and loss.equation and not data.losses and loss.classes == (data.classes is not None):
        rule = f"{config.task.loss} needs an equation or a fit, and task.data {config.task.data} is none"
        problems.append((("task", "loss"), rule))
    if data and data.fresh and config.task.batch_size != data.training:
        rule = f"must be {data.training}, the points of {data.name}, which are new at each step"
        problems.append((("task", "batch_size"), f"{rule}, got {config.task.batch_size}"))
    if data and (data.equation or data.model) and config.task.subset is not None:
        kind = "an equation" if data.equation else "a fit"
        problems.append((("task", "subset"), f"must be null for {kind}, got {config.task.subset}"))
    for name in config.search.recipes if loss and not loss.squares else ():
        found = resolved.get(name)
        if found and found.recipe.structure.squares:
            rule = f"must be a sum of squares, as squared_error is, for recipe {name}"
            problems.append((("task", "loss"), f"{rule}, got {show(config.task.loss)}"))
    for name in config.search.recipes if loss and not loss.distribution else ():
        found = resolved.get(name)
        if found and any(part.likelihood for part in found.recipe.structure.parts_used.values()):
            rule = "must be the negative log-likelihood of a distribution, as cross_entropy is, for recipe"
            problems.append((("task", "loss"), f"{rule} {name}, got {show(config.task.loss)}"))
    for name in config.search.recipes if model and not model.states else ():
        found = resolved.get(name)
        if found and any(part.states for part in found.recipe.structure.parts_used.values()):
            rule = f"must give its hidden states, as rnn_100 does, for recipe {name}"
            problems.append((("task", "model"), f"{rule}, got {show(config.task.model)}"))
    return problems


def _meant(name: str, known: Iterable[str]) -> str:
    hint = nearest(name, known)
    return hint if "did you mean" in hint else "; one of a plug-in needs --plugin FILE.py"


_ALLOWED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "paper": {"seeds": ("one", "draw", "weights"), "repeats": (1,)},
    "fair": {
        "sampler": ("random", "qmc"), "objective": ("validation_loss",), "seeds": ("draw", "one"),
        "repeats": (1,),
    },
    "crossed": {"sampler": ("random", "qmc"), "objective": ("validation_loss",)},
}  # fmt: skip
"""The values of the keys that a design allows."""


def _search_problems(config: Settings) -> list[Problem]:
    """List the problems between the keys of the search and the split."""
    search, full = config.search, config.task.split == "full"
    for pair in config.compare.contrasts:
        for name in pair:
            if name not in search.recipes or pair[0] == pair[1]:
                rule = "must be pairs of two recipes of search.recipes"
                hint = nearest(name, search.recipes)
                return [(("compare", "contrasts"), f"{rule}, got {' and '.join(pair)}{hint}")]
    if search.design != "paper" and full:
        rule = "must be paper where task.split is full, which has no validation set"
        return [(("search", "design"), f"{rule}, got {search.design!r}")]
    given = {key: getattr(search, key) for key in _ALLOWED[search.design]}
    problems: list[Problem] = [
        (
            ("search", key),
            f"must be {' or '.join(', '.join(map(str, allowed)).rsplit(', ', 1))} "
            f"where search.design is {search.design}, got {show(given[key])}",
        )
        for key, allowed in _ALLOWED[search.design].items()
        if given[key] not in allowed
    ]
    if search.design == "crossed":
        problems += _crossed_problems(search)
    if search.objective == "validation_loss" and full:
        rule = "must be train_loss where task.split is full, which has no validation set"
        problems.append((("search", "objective"), f"{rule}, got 'validation_loss'"))
    return problems


def _crossed_problems(search: SearchSection) -> list[Problem]:
    if isinstance(search.seeds, str):
        rule = "must be the number of seeds of each draw, an integer ≥ 2, where search.design is crossed"
        return [(("search", "seeds"), f"{rule}, got {search.seeds!r}")]
    runs = search.seeds * search.repeats
    if search.trials % runs or search.trials < 2 * runs:
        rule = f"must be draws × seeds × repeats, a multiple of {runs} from {2 * runs} on"
        return [(("search", "trials"), f"{rule}, where search.design is crossed, got {search.trials}")]
    return []
