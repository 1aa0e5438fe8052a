"""Recipes from optimizer classes of installed packages, whose arguments are their hyperparameters."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Range, nearest
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import OUTER, Whole

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
RATE = Range(1e-4, 0.1, log=True)
"""Search range of a learning rate without one of its own."""
PLAIN = (bool, int, float, str, type(None))


class NotInstalledError(ValueError):
    """The package of a class is not installed."""


_READING: ContextVar[bool] = ContextVar("reading", default=False)


@contextmanager
def reading() -> Iterator[None]:
    """Leave classes alone within the block: a study is read, and its classes need not be there."""
    token = _READING.set(True)
    try:
        yield
    finally:
        _READING.reset(token)


def is_path(name: object) -> bool:
    """Return whether a name is that of a class with its module, such as `torch.optim.NAdam`."""
    return isinstance(name, str) and _PATH.fullmatch(name) is not None


def load(path: str) -> type[Any]:
    """Return a class of an installed package.

    Raises:
        NotInstalledError: there is no such package.
        ValueError: a file of the current folder hides the package, or it has no such optimizer.
    """
    import torch

    top = path.partition(".")[0]
    _refuse_uninstalled(top)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{path}: cannot import {module} ({error})") from None
    base = torch.optim.Optimizer
    if found is None:
        members = vars(sys.modules[module]).items()
        known = [n for n, v in members if isinstance(v, type) and issubclass(v, base)]
        raise ValueError(f"{path}: {module} has no {name}{nearest(name, known)}")
    if not (isinstance(found, type) and issubclass(found, base)) or found.step is base.step:
        raise ValueError(f"{path} must be a subclass of torch.optim.Optimizer with a step()")
    return found


def _refuse_uninstalled(top: str) -> None:
    """Raise ValueError unless a package lies in the folders of installed ones, and is found there first."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    if site.ENABLE_USER_SITE:
        folders.add(site.getusersitepackages())
    own = PathFinder.find_spec(top, sorted(folders))
    try:
        used = find_spec(top)
    except ValueError:  # a module without a specification, such as __main__
        used = None
    if own is None and used is None:
        raise NotInstalledError(f"the package {top} is not installed: pip install {top}")
    if own is None or used is None or own.origin != used.origin:
        where = used.origin if used is not None and used.origin else "the current folder"
        raise ValueError(
            f"{top} must be an installed package, and {Path(where)} is none; a file of yours needs --plugin"
        )


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor, or one element of a tuple of numbers."""

    name: str
    default: Any
    """`inspect.Parameter.empty` if it must be given"""
    real: bool
    """whether it is a real number, and so a hyperparameter"""


def arguments_of(made: type[Any]) -> dict[str, Argument]:
    """Return the arguments of a class after its first by name; `betas` gives `betas.0` and `betas.1`."""
    found: dict[str, Argument] = {}
    _, _, *rest = inspect.signature(made.__init__).parameters.values()
    for p in rest:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        numbers = isinstance(p.default, tuple) and all(type(v) is float for v in p.default)
        if numbers and p.default:
            own = (Argument(f"{p.name}.{n}", value, True) for n, value in enumerate(p.default))
            found |= {argument.name: argument for argument in own}
            continue
        real = type(p.default) is float or p.name == "lr"
        if type(p.default) is int:  # such as weight_decay: float = 0
            real = real or (p.annotation is float or "float" in str(p.annotation))
        found[p.name] = Argument(p.name, p.default, real)
    return found


def constructed(made: type[Any], settings: Mapping[str, Any], values: Mapping[str, float]) -> dict[str, Any]:
    """Return the keyword arguments of a constructor from settings and hyperparameters."""
    known, arguments = arguments_of(made), dict(settings)
    parts: dict[str, list[float]] = {}
    for name, value in values.items():
        if name not in known:
            continue
        whole, dot, _ = name.partition(".")
        if dot:
            parts.setdefault(whole, []).append(value)
        else:
            arguments[name] = value
    return {**arguments, **{name: tuple(own) for name, own in parts.items()}}


def recipe_of(
    name: str, path: str, given: Mapping[str, Any], searched: Collection[str], **outer: str
) -> Recipe:
    """Return the recipe of a class.

    The real arguments are hyperparameters, fixed at the class's defaults.  `lr` is free with a range, unless
    it is given.  A class that is not installed, or of a study that is read, has the given and searched
    hyperparameters alone.

    Args:
        name: name of the recipe.
        path: class with its module.
        given: arguments with values.
        searched: hyperparameters that have ranges.
        outer: schedule, warm-up and average.

    Raises:
        ValueError: no such class, an argument that it lacks, or a required one that is missing.
    """
    try:
        known = {} if _READING.get() else arguments_of(load(path))
    except NotInstalledError:
        known = {}
    if not known:
        real = {k for k, v in given.items() if type(v) in (int, float)} | set(searched)
        known = {k: Argument(k, math.nan, k in real) for k in (*given, *searched)}
        known.setdefault("lr", Argument("lr", math.nan, True))
    for key, value in given.items():
        _check(path, key, value, known)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if not known[k].real}
    fixed = {k: a.default for k, a in known.items() if a.real and k != "lr"}
    fixed |= {k: float(v) for k, v in given.items() if known[k].real}
    for key, argument in known.items():
        missing = argument.default is inspect.Parameter.empty and key not in given
        if missing and not (argument.real and (key == "lr" or key in searched)):
            raise ValueError(f"{path} needs {key}: give it in fixed")
    fixed = {k: float(v) for k, v in fixed.items() if v is not inspect.Parameter.empty}
    names = tuple(k for k, argument in known.items() if argument.real)
    structure = Whole("optimizer", path, tuple(settings.items()), names, **outer)
    return Recipe(name, structure, fixed, (), {"lr": RATE} if "lr" in names else {}, path)


def _check(path: str, key: str, value: object, known: Mapping[str, Argument]) -> None:
    if key not in known:
        raise ValueError(f"{path} has no argument {key!r}{nearest(key, known)}")
    if known[key].real and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{key} must be a number, got {value!r}")
    if known[key].real and key in HYPERPARAMETERS:
        HYPERPARAMETERS[key].check(float(value))  # type: ignore[arg-type]
    plain = value if isinstance(value, list) else [value]
    if not all(isinstance(v, PLAIN) for v in plain):
        raise ValueError(f"{key} must be one value for all parameters, got {value!r}")


OWN = ("optimizer", "fixed", *OUTER)
"""Keys of a recipe that is a class."""


def from_mapping(name: str, mapping: Mapping[str, Any], searched: Collection[str]) -> Recipe:
    """Return the recipe of a mapping `{optimizer: CLASS, fixed: {…}}`, with schedule, warm-up and average.

    Raises ValueError for keys that do not go with a class, and as `recipe_of`.
    """
    if foreign := [key for key in mapping if key not in OWN]:
        raise ValueError(
            f"{foreign[0]} does not go with optimizer: its keys are {', '.join(OWN)}, and fixed has the "
            "arguments of the class"
        )
    path, given = mapping["optimizer"], mapping.get("fixed", {})
    if not is_path(path):
        raise ValueError(
            f"optimizer must be a class with its module, such as torch.optim.NAdam, got {path!r}"
        )
    if not isinstance(given, Mapping):
        raise ValueError(f"fixed must be a mapping of arguments, got {given!r}")
    outer = {key: mapping[key] for key in OUTER if key in mapping}
    return recipe_of(name, path, given, searched, **outer)


def with_classes(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data with a recipe for each optimizer class that is named in place of a recipe."""

    def of(section: str, key: str | None = None) -> Iterable[Any]:
        found = data.get(section)
        found = found.get(key, ()) if key and isinstance(found, Mapping) else found
        return found if isinstance(found, Mapping | list | tuple) else ()

    recipes = data.get("recipes") or {}
    if not isinstance(recipes, Mapping):
        return data
    named = [*of("search", "recipes"), *of("train", "longer"), *of("spaces")]
    classes = {
        name: {"optimizer": name}
        for name in named
        if is_path(name) and name not in recipes and name not in RECIPES
    }
    return {**data, "recipes": {**recipes, **classes}} if classes else data
