"""Rules of a configuration that concern more than one key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ahf_cli.config.resolve import Resolved, resolve_recipes
from ahf_cli.config.schema import KeyPath, Problem, Settings, show
from ahf_cli.recipes.hyperparameters import nearest
from ahf_cli.tasks.catalogue import LOSSES, MODELS
from ahf_cli.tasks.datasets import DATA_SETS, training_size
from ahf_cli.tasks.metrics import metrics_of


def cross_problems(config: Settings, known: set[KeyPath]) -> list[Problem]:
    """List what is wrong between keys; `known` are the paths whose problem is listed already."""
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
    return problems


def _task_problems(config: Settings, resolved: Mapping[str, Resolved | None]) -> list[Problem]:
    """List unknown names of the task, and recipes that need more of a loss than it has."""
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
    for name in config.search.recipes if loss and not loss.distribution else ():
        found = resolved.get(name)
        if found and any(part.likelihood for part in found.recipe.structure.parts_used.values()):
            rule = "must be the negative log-likelihood of a distribution, as cross_entropy is, for recipe"
            problems.append((("task", "loss"), f"{rule} {name}, got {show(config.task.loss)}"))
    return problems


def _meant(name: str, known: Iterable[str]) -> str:
    hint = nearest(name, known)
    return hint if "did you mean" in hint else "; one of a plug-in needs --plugin FILE.py"


def _search_problems(config: Settings) -> list[Problem]:
    """List what is wrong between the keys of the search and the split."""
    search, full = config.search, config.task.split == "full"
    if search.design == "fair":
        if full:
            rule = "must be paper where task.split is full, which has no validation set"
            return [(("search", "design"), f"{rule}, got 'fair'")]
        allowed = {"sampler": ("random", "qmc"), "objective": ("validation_loss",)}
        given = {key: getattr(search, key) for key in allowed}
        return [
            (
                ("search", key),
                f"must be {' or '.join(allowed[key])} where search.design is fair, got {show(value)}",
            )
            for key, value in given.items()
            if value not in allowed[key]
        ]
    if search.objective == "validation_loss" and full:
        rule = "must be train_loss where task.split is full, which has no validation set"
        return [(("search", "objective"), f"{rule}, got 'validation_loss'")]
    return []
