"""Recipes, models, data sets and losses of the user's own, registered by decorators in a file of theirs.

    ahf search --plugin mine.py --recipe my_recipe -o task.model=my_model

A plug-in is Python code, run with the rights of who names it: only `--plugin` loads one, never a
configuration or a study.  A study keeps a copy of the plug-ins that it used, and their SHA-256 belong to its
identity, so that results of two versions do not mix.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ahf_cli.errors import InputError
from ahf_cli.hyperparameters import HYPERPARAMETERS, Hyperparameter, Range, nearest
from ahf_cli.recipe import RECIPES, Recipe, find_recipe
from ahf_cli.structure import PARTS, Own, Parts
from ahf_cli.tasks.catalogue import LOSSES, MODELS, Loss
from ahf_cli.tasks.datasets import DATA_SETS, DataSet

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Hyperparameter", "Range", "data_set", "hyperparameter", "load", "loss", "model", "recipe"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plugin:
    """A file that was loaded."""

    path: Path
    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


LOADED: dict[Path, Plugin] = {}
"""The plug-ins that are loaded, by path."""
_ORIGIN: dict[tuple[str, str], Plugin] = {}
"""Where what a plug-in registered comes from, by kind and name."""
_loading: list[Plugin] = []


def model(name: str) -> Callable[[F], F]:
    """Register a function (shape of an input, number of classes) → `nn.Module` as `task.model`.

    The module maps (N, *shape) to logits (N, classes).  Its own weights are not used: a trial draws them from
    its seed, matrices and kernels uniform by Glorot, vectors 0, scales of normalisation layers 1.  It runs in
    evaluation mode.
    """

    def register(function: F) -> F:
        _enter("model", name, MODELS)
        MODELS[name] = function
        return function

    return register


def data_set(name: str, *, classes: int, shape: tuple[int, ...], training: int) -> Callable[[F], F]:
    """Register a function () → (inputs, labels, test inputs, test labels) as `task.data`.

    The function returns NumPy arrays: inputs (N, *shape) of bytes, which are divided by 255, or of floating
    point numbers, which are taken as they are; labels (N,) of integers in [0, classes).  It must give the
    same arrays at each call, since each process calls it.  A sixth of the training examples validates.

    Args:
        name: of the data set.
        classes: number of classes, ≥ 2.
        shape: of an input.
        training: number of training examples, N.
    """
    if classes < 2 or training < 6:
        raise ValueError(f"data set {name!r} needs ≥ 2 classes and ≥ 6 examples, got {classes}, {training}")

    def register(function: F) -> F:
        _enter("data set", name, DATA_SETS)
        DATA_SETS[name] = DataSet.own(name, classes, tuple(shape), training, function)
        return function

    return register


def loss(name: str, *, chance: Callable[[int], float]) -> Callable[[F], F]:
    """Register a function (outputs (N, C), labels (N,)) → mean loss as `task.loss`.

    Its derivatives are PyTorch's.  Gauss-Newton products want it convex in the outputs.  Recipes with the
    Fisher matrix or the dual solver need more of a loss than that, and are refused.

    Args:
        name: of the loss.
        chance: the loss of guessing among so many classes, which counts for a diverged trial.
    """

    def register(function: F) -> F:
        _enter("loss", name, LOSSES)

        def make() -> Any:
            from ahf_cli.optim.losses import MeanLoss

            own: Callable[[Tensor, Tensor], Tensor] = function
            return MeanLoss(own)

        make.__doc__ = function.__doc__
        LOSSES[name] = Loss(make, chance)
        return function

    return register


def hyperparameter(own: Hyperparameter) -> Hyperparameter:
    """Declare a hyperparameter that no built-in recipe has; a recipe that reads it names it in `search`."""
    _enter("hyperparameter", own.name, HYPERPARAMETERS)
    HYPERPARAMETERS[own.name] = own
    return own


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
        ValueError: an unknown base, choice or hyperparameter, or one that has no effect.
    """
    searched, constant = dict(search or {}), dict(fixed or {})
    for key in (*searched, *constant):
        if key not in HYPERPARAMETERS:
            raise ValueError(f"recipe {name!r}: no hyperparameter {key!r}{nearest(key, HYPERPARAMETERS)}")
    for key, found in searched.items():
        HYPERPARAMETERS[key].check(found.low, f"recipe {name!r}: {key}")
        if not found.low <= found.high:
            raise ValueError(f"recipe {name!r}: {key} needs low ≤ high, got {found.low:g} and {found.high:g}")

    def register(function: F) -> F:
        _enter("recipe", name, RECIPES)
        PARTS[name] = Parts(function, (*searched, *constant))
        try:
            RECIPES[name] = _made(name, base, searched, constant, source, choices)
        except ValueError:
            del PARTS[name]
            raise
        return function

    return register


def _made(
    name: str, base: str | None, searched: Mapping[str, Range], constant: Mapping[str, float], source: str,
    choices: Mapping[str, object],
) -> Recipe:  # fmt: skip
    if base is None:
        if choices:
            raise ValueError(f"recipe {name!r}: {', '.join(choices)} need a base whose choices they change")
        return Recipe(name, Own(name), constant, (), searched, source)
    derived = find_recipe(base).derive(name, choices)
    changed = replace(derived.choices, parts=name)
    own = {key: value for key, value in {**derived.fixed, **constant}.items() if key not in searched}
    return replace(
        derived, structure=changed, fixed=own, ranges={**derived.ranges, **searched}, source=source
    )


def _enter(kind: str, name: str, known: Mapping[str, object]) -> None:
    """Note where a name comes from; raise ValueError for one that is taken, or is none."""
    if not NAME.fullmatch(name):
        raise ValueError(f"the name of a {kind} must match {NAME.pattern}, got {name!r}")
    if name in known:
        raise ValueError(f"there is a {kind} {name!r} already: choose another name")
    if _loading:
        _ORIGIN[kind, name] = _loading[-1]


def load(paths: Iterable[Path]) -> None:
    """Run the plug-ins that are not loaded yet, in this order.

    Raises:
        InputError: a file that cannot be read, or fails; the line says where.
    """
    for path in paths:
        try:
            plugin = Plugin(path.resolve(strict=True), path.read_bytes())
        except OSError as error:
            raise InputError(f"--plugin {path}: cannot be read: {error.strerror or error}") from None
        if path.suffix != ".py":
            raise InputError(f"--plugin must be a Python file, NAME.py, got {str(path)!r}")
        if plugin.path not in LOADED:
            _run(path, plugin)
            LOADED[plugin.path] = plugin


def _run(path: Path, plugin: Plugin) -> None:
    name = f"ahf_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', plugin.path.stem)}_{plugin.digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, plugin.path)
    assert spec is not None and spec.loader is not None  # of a .py file it always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for their module
    _loading.append(plugin)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            where: int | None = error.lineno
        else:
            own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(plugin.path)]
            where = own[-1].lineno if own else None
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        line = "" if where is None else f":{where}"
        raise InputError(f"--plugin {path}{line}: {type(error).__name__}: {said}") from error
    finally:
        _loading.pop()


def origins(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the SHA-256 of the plug-ins that (kind, name) pairs come from, by `kind name`."""
    return {f"{kind} {name}": _ORIGIN[kind, name].digest for kind, name in names if (kind, name) in _ORIGIN}
