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
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Range, declare, nearest, of_class
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import OUTER, AnyStructure, Whole

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
    except Exception as error:  # a package may fail in any way
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"cannot import {module}: {said}") from None
    base = torch.optim.Optimizer
    if found is None:
        members = vars(sys.modules[module]).items()
        known = [n for n, v in members if isinstance(v, type) and issubclass(v, base)]
        raise ValueError(f"{module} has no {name}{nearest(name, known)}")
    if not (isinstance(found, type) and issubclass(found, base)) or found.step is base.step:
        raise ValueError(f"{path} must be a subclass of torch.optim.Optimizer with a step()")
    return found


def _refuse_uninstalled(top: str) -> None:
    """Raise ValueError unless a package lies in the folders of installed ones, and is found there first."""
    if top in sys.stdlib_module_names:
        raise ValueError(f"{top} is a module of Python, which has no optimizers")
    own = PathFinder.find_spec(top, _installed())
    try:
        used = find_spec(top)
    except ValueError:  # a module without a specification, such as __main__
        used = None
    if own is None and used is None:
        raise NotInstalledError(f"the package {top} is not installed: pip install {top.replace('_', '-')}")
    if own is None or _places(own) != _places(used):
        where = next(iter(_places(used)), "a file of yours")
        raise ValueError(
            f"{top} must be an installed package, got {where}: a file of yours needs --plugin FILE.py"
        )


def _installed() -> list[str]:
    """Return the folders of installed packages, with the folder that holds PyTorch."""
    import torch

    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    if site.ENABLE_USER_SITE:
        folders.add(site.getusersitepackages())
    folders |= {folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")}
    return [*sorted(folders), str(Path(torch.__file__).parents[1])]


def _places(found: ModuleSpec | None) -> list[str]:
    """Return the file of a package, or its folders if it has no file of its own."""
    if found is None:
        return []
    return [found.origin] if found.origin else list(found.submodule_search_locations or ())


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor, or one element of a tuple of numbers."""

    name: str
    default: Any
    """`inspect.Parameter.empty` if it must be given"""
    real: bool
    """whether it is a real number, and so a hyperparameter"""
    may_be_real: bool = False
    """whether it is a real number if it is not at its default, None or infinite"""


def arguments_of(made: type[Any]) -> dict[str, Argument]:
    """Return the arguments of a class after its first by name; `betas` gives `betas.0` and `betas.1`."""
    found: dict[str, Argument] = {}
    for p in list(inspect.signature(made.__init__).parameters.values())[2:]:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if _are_numbers(p.default):
            own = (Argument(f"{p.name}.{n}", value, True) for n, value in enumerate(p.default))
            found |= {argument.name: argument for argument in own}
            continue
        said = p.annotation is float or "float" in str(p.annotation)
        endless = type(p.default) is float and not math.isfinite(p.default)
        number = type(p.default) is float or (said and (type(p.default) is int or p.default is p.empty))
        real = p.name == "lr" or (number and not endless)
        found[p.name] = Argument(p.name, p.default, real, endless or (p.default is None and said))
    return found


def _are_numbers(default: object) -> bool:
    """Return whether a default is a tuple of real numbers, such as (0.9, 0.999) or (1e-6, 50)."""
    if not isinstance(default, tuple | list):
        return False
    kinds = {type(value) for value in default}
    return float in kinds and kinds <= {float, int}


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
    name: str, path: str, given: Mapping[str, Any], searched: Collection[str], **outer: Any
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
        known = None if _READING.get() else arguments_of(load(path))
    except NotInstalledError:
        known = None
    if known is None:
        real = {"lr", *searched, *(k for k, v in given.items() if type(v) in (int, float))}
        known = {k: Argument(k, math.nan, k in real) for k in ("lr", *given, *searched)}
    for key, argument in known.items():
        if argument.may_be_real and (type(given.get(key)) in (int, float) or key in searched):
            known[key] = replace(argument, real=True)
    for key, value in given.items():
        _check(path, key, value, known)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if not known[k].real}
    fixed = {k: a.default for k, a in known.items() if a.real and k != "lr"}
    fixed |= {k: float(v) for k, v in given.items() if known[k].real}
    for key, argument in known.items():
        missing = argument.default is inspect.Parameter.empty and key not in given
        if missing and not (argument.real and (key == "lr" or key in searched)):
            raise ValueError(f"{path} needs {key}: give it in fixed")
    fixed = {k: float(v) for k, v in fixed.items() if v is not None and v is not inspect.Parameter.empty}
    names = tuple(k for k, argument in known.items() if argument.real)
    structure = Whole("optimizer", path, tuple(settings.items()), names, **outer)
    return Recipe(name, structure, fixed, (), {"lr": RATE} if "lr" in names else {}, path)


def _check(path: str, key: str, value: object, known: Mapping[str, Argument]) -> None:
    if f"{key}.0" in known:
        own = [name for name in known if name.rpartition(".")[0] == key]
        raise ValueError(f"{key} is a tuple: give its elements {', '.join(own)}")
    if key not in known:
        raise ValueError(f"{path} has no argument {key!r}{nearest(key, known)}")
    if known[key].real and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{key} must be a number, got {value!r}")
    if known[key].real:
        HYPERPARAMETERS.get(key, of_class(key)).check(float(value))  # type: ignore[arg-type]
    plain = value if isinstance(value, list) else [value]
    if not all(isinstance(v, PLAIN) for v in plain):
        raise ValueError(f"{key} must be one value for all parameters, got {value!r}")


def class_document(path: str) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """Return the recipe of a class, and the defaults of its arguments: `fixed` ones and `settings`.

    A required argument has the default `required`.

    Raises ValueError for no such class.
    """
    if not is_path(path):
        raise ValueError("must be a class with its module, such as torch.optim.NAdam")
    empty, known = inspect.Parameter.empty, arguments_of(load(path))
    own = [a for a in known.values() if a.name != "lr"]
    needed = {a.name: 1.0 if a.real else "" for a in own if a.default is empty}
    shown = {a.name: "required" if a.default is empty else a.default for a in own}
    return recipe_of(path, path, needed, ()), {
        "fixed": {name: value for name, value in shown.items() if known[name].real},
        "settings": {name: value for name, value in shown.items() if not known[name].real},
    }


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


def add_classes(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data with a recipe for each optimizer class that is named in place of a recipe."""

    def of(section: str, key: str | None = None) -> Iterable[Any]:
        found = data.get(section)
        found = found.get(key, ()) if key and isinstance(found, Mapping) else found
        return found if isinstance(found, Mapping | list | tuple) else ()

    recipes = data.get("recipes") or {}
    if not isinstance(recipes, Mapping):
        return data
    bases = [mapping.get("base") for mapping in recipes.values() if isinstance(mapping, Mapping)]
    named = [*of("search", "recipes"), *of("train", "longer"), *of("spaces"), *bases]
    classes = {
        name: {"optimizer": name}
        for name in named
        if is_path(name) and name not in recipes and name not in RECIPES
    }
    return {**data, "recipes": {**recipes, **classes}} if classes else data


def declare_arguments(identity: Mapping[str, Any]) -> None:
    """Enter the hyperparameters of the classes in a study's identity; the classes need not be installed."""
    for name, described in identity.get("recipes", {}).items():
        if is_path(described.get("structure", {}).get("optimizer")):
            declare([*described.get("fixed", {}), *identity.get("spaces", {}).get(name, {})])


def absent(structure: AnyStructure) -> str:
    """Return the reason for which the class of a recipe is not there; "" for an installed class, or none."""
    try:
        if isinstance(structure, Whole) and structure.is_class:
            load(structure.name)
    except NotInstalledError as error:
        return str(error)
    return ""
